"""Batch sizes a trace holds for: from the guards of torch.export, and from trials at sizes it says nothing about."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import nn

from sparsify.errors import TraceError
from sparsify.ir import Program, TraceWarning, trace
from sparsify.ir.size_ranges import SizeRange, UnreadableGuard, ranges_of
from tests.cases import digits


class Conditional(nn.Module):
    """A linear classifier whose forward looks at the number of samples."""

    def __init__(self, rule) -> None:
        super().__init__()
        self.fc, self.rule = nn.Linear(64, 10), rule

    def forward(self, x):
        return self.rule(x, self.fc(x.flatten(1)))


def asserted(x, y):
    assert x.shape[0] <= 20
    return y


RULES = {
    "greater": (lambda x, y: -y if x.shape[0] > 16 else y, 6, SizeRange(1, 16)),
    "beyond": (lambda x, y: -y if x.shape[0] > 5000 else y, 6, SizeRange(1, 5000)),
    "from_above": (lambda x, y: -y if x.shape[0] > 16 else y, 18, SizeRange(17)),
    "equal": (lambda x, y: -y if x.shape[0] == 16 else y, 6, SizeRange(1, excluded=(16,))),
    "even": (lambda x, y: -y if x.shape[0] % 2 else y, 6, SizeRange(2, step=2)),
    "odd": (lambda x, y: -y if x.shape[0] % 2 else y, 5, SizeRange(1, step=2)),
    "divided": (lambda x, y: -y if x.shape[0] // 4 >= 3 else y, 6, SizeRange(1, 11)),
    "product": (lambda x, y: -y if x.numel() > 64 * 30 else y, 6, SizeRange(1, 30)),
    "asserted": (asserted, 6, SizeRange(1, 20)),
    "pairs": (lambda x, y: y.view(-1, 2, 10).mean(1), 6, SizeRange(2, step=2)),
    "one": (lambda x, y: y * 2 if x.shape[0] == 1 else y, 6, SizeRange(2)),
    "squeezed": (lambda x, y: y + y.squeeze(0).shape[0], 6, SizeRange(2)),
    "largest": (lambda x, y: y * max(x.shape[0], 5), 6, SizeRange()),
    "mean": (lambda x, y: y / x.shape[0], 6, SizeRange()),
}


@pytest.mark.parametrize("name", RULES)
def test_the_range_is_that_of_the_code(name):
    rule, samples, expected = RULES[name]
    model, (x, _) = Conditional(rule).eval(), digits(40)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        program = trace(model, (x[:samples],))
    assert program.batch_ranges["eval"] == expected
    texts = [str(w.message) for w in caught if w.category is TraceWarning]
    assert any(f"batches of {expected}" in text for text in texts) != expected.everything
    for size in (1, 2, 3, 4, 11, 12, 16, 17, 21, 30, 31, 40):
        if size in program.batch_ranges["eval"]:
            torch.testing.assert_close(program(x[:size]), model(x[:size]))
        else:
            with pytest.raises(TraceError, match=f"found N = {size}"):
                program(x[:size])


def test_the_warning_names_the_line_and_the_file_keeps_the_range(tmp_path):
    with pytest.warns(TraceWarning, match=r"1 <= N <= 16 in eval mode.*test_size_ranges\.py:\d+ in <lambda>"):
        program = trace(Conditional(RULES["greater"][0]), (digits(6)[0],))
    program.save(tmp_path / "a.sparsify")
    for other in (Program.load(tmp_path / "a.sparsify"), program.clone()):
        assert other.batch_ranges == program.batch_ranges
    program.save(tmp_path / "b.sparsify")
    assert (tmp_path / "a.sparsify").read_bytes() == (tmp_path / "b.sparsify").read_bytes()


def test_a_phase_has_a_range_of_its_own():
    class Trained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm = nn.Linear(64, 10), nn.BatchNorm1d(10)

        def forward(self, x):
            return self.norm(self.fc(x.flatten(1)))

    program = trace(Trained(), (digits(6)[0],))  # no warning: in training the model itself refuses one sample
    assert program.batch_ranges == {"train": SizeRange(2), "eval": SizeRange()}
    with pytest.raises(TraceError, match="found N = 1"):
        program.train()(digits(1)[0])
    assert program.eval()(digits(1)[0]).shape == (1, 10)


def test_inputs_of_one_batch_must_agree():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, a, b):
            return self.fc(a + b)

    program = trace(Two(), (torch.randn(4, 4), torch.randn(4, 4)))
    with pytest.raises(TraceError, match="found 3 and 2"):
        program(torch.randn(3, 4), torch.randn(2, 4))


def test_a_model_of_one_sample_is_fixed_to_it():
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 10)

        def forward(self, x):
            return self.fc(x.reshape(1, 64))

    with pytest.warns(TraceWarning, match="batch of 1 only"):
        program = trace(Single(), (digits(1)[0],))
    assert not program.dynamic_batch
    assert program(digits(1)[0]).shape == (1, 10)
    with pytest.raises(TraceError, match="no dimension may vary"):
        program(digits(2)[0])


def ranges(guards, **sizes):
    """Of guards on one input ``x`` whose dimensions have the names of ``sizes``, in order."""
    names = list(sizes)
    return ranges_of(guards, sizes, lambda path, at: names[at] if path in (("x",), ("args", "0")) else None)


def test_guards_by_hand():
    x = "L['x'].size()"
    assert ranges([f"{x}[0] <= 16", f"{x}[0] != 4"], N=6) == {"N": SizeRange(1, 16, excluded=(4,))}
    assert ranges(["(L['args'][0].size()[0] % 3) == 1"], N=4) == {"N": SizeRange(1, step=3)}
    assert ranges([f"{x}[1] <= 16"], N=6, T=6) == {"N": SizeRange(), "T": SizeRange(1, 16)}
    assert ranges([f"{x}[0]*{x}[1] != 1"], H=6, W=8) == {"H": SizeRange(2), "W": SizeRange()}
    assert ranges([f"{x}[0] >= {x}[1]", f"{x}[1] <= 6"], H=6, W=6) == {"H": SizeRange(6), "W": SizeRange(1, 6)}
    for guards, name, reason in (
        ([f"{x}[0] == 6"], "N", "conditions on the batch size are N == 6"),
        (["L['y'].size()[0] <= 6"], None, "L['y'].size()[0] <= 6"),
        ([f"{x}[0] == {x}[1]"], "N", "N and T have to be equal"),
        ([f"{x}[0]*{x}[1] <= 40"], "T", "ties N and T together"),
    ):
        with pytest.raises(UnreadableGuard, match=re.escape(reason)) as raised:
            ranges(guards, N=6, T=6)
        assert raised.value.name == name


def test_ranges_by_hand():
    assert str(SizeRange(2, 16, 2, (4,))) == "2 <= N <= 16 in steps of 2, but not 4"
    assert SizeRange(2, 16, 2, (4,)).nearest(3) == 6
    assert SizeRange(2, 16, 2).nearest(40) == 16
    with pytest.raises(ValueError, match="positive"):
        SizeRange(0)
    assert SizeRange(2, 16, 2).within(SizeRange(3, 30, 3)) == SizeRange(6, 16, 6)
    assert SizeRange(1, 4).within(SizeRange(6)) is None
    assert SizeRange(3, 9).text("T") == "3 <= T <= 9"
