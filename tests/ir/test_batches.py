"""Batch sizes a trace holds for: from the guards of torch.export, and from trials at sizes it says nothing about."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from sparsify.errors import TraceError
from sparsify.ir import Program, TraceWarning, trace
from sparsify.ir.batches import BatchRange, range_of
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
    "greater": (lambda x, y: -y if x.shape[0] > 16 else y, 6, BatchRange(1, 16)),
    "beyond": (lambda x, y: -y if x.shape[0] > 5000 else y, 6, BatchRange(1, 5000)),
    "from_above": (lambda x, y: -y if x.shape[0] > 16 else y, 18, BatchRange(17)),
    "equal": (lambda x, y: -y if x.shape[0] == 16 else y, 6, BatchRange(1, excluded=(16,))),
    "even": (lambda x, y: -y if x.shape[0] % 2 else y, 6, BatchRange(2, step=2)),
    "odd": (lambda x, y: -y if x.shape[0] % 2 else y, 5, BatchRange(1, step=2)),
    "divided": (lambda x, y: -y if x.shape[0] // 4 >= 3 else y, 6, BatchRange(1, 11)),
    "product": (lambda x, y: -y if x.numel() > 64 * 30 else y, 6, BatchRange(1, 30)),
    "asserted": (asserted, 6, BatchRange(1, 20)),
    "pairs": (lambda x, y: y.view(-1, 2, 10).mean(1), 6, BatchRange(2, step=2)),
    "one": (lambda x, y: y * 2 if x.shape[0] == 1 else y, 6, BatchRange(2)),
    "squeezed": (lambda x, y: y + y.squeeze(0).shape[0], 6, BatchRange(2)),
    "largest": (lambda x, y: y * max(x.shape[0], 5), 6, BatchRange()),
    "mean": (lambda x, y: y / x.shape[0], 6, BatchRange()),
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
    with pytest.warns(TraceWarning, match=r"1 <= N <= 16 in eval mode.*test_batches\.py:\d+ in <lambda>"):
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
    assert program.batch_ranges == {"train": BatchRange(2), "eval": BatchRange()}
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


def test_guards_by_hand():
    assert range_of(["L['x'].size()[0] <= 16", "L['x'].size()[0] != 4"], 6) == BatchRange(1, 16, excluded=(4,))
    assert range_of(["(L['args'][0].size()[0] % 3) == 1"], 4) == BatchRange(1, step=3)
    assert range_of(["L['x'].size()[0] == 6"], 6) is None
    assert range_of(["L['x'].size()[1] <= 16"], 6) is None
    assert str(BatchRange(2, 16, 2, (4,))) == "2 <= N <= 16 in steps of 2, but not 4"
    assert BatchRange(2, 16, 2, (4,)).nearest(3) == 6
    assert BatchRange(2, 16, 2).nearest(40) == 16
    with pytest.raises(ValueError, match="positive"):
        BatchRange(0)
