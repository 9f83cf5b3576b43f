"""Dimensions that vary beside the batch: declared by name, checked at other sizes, refused outside their range, and kept in files."""

from __future__ import annotations

import json
import warnings
import zipfile

import pytest
import torch
from torch import nn

from sparsify.errors import LoadError, TraceError
from sparsify.ir import Program, TraceWarning, trace
from sparsify.ir.dimensions import parsed, value_of
from sparsify.ir.size_ranges import SizeRange
from tests.cases import digits


class Tokens(nn.Module):
    """Embeddings and positions; ``rule`` looks at the length."""

    def __init__(self, rule=lambda x, length: x, *, positions=32) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(20, 8), nn.Embedding(positions, 8)
        self.head, self.rule = nn.Linear(8, 20), rule

    def forward(self, ids, mask):
        x = self.embedding(ids) * mask[..., None]
        return self.rule(self.head(x + self.positions.weight[: ids.shape[1]]), ids.shape[1])


LENGTH = {"ids": {1: "T"}, "mask": {1: "T"}}


def batch(count, length):
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(20, (count, length), generator=generator)
    return {"ids": ids, "mask": torch.rand(count, length, generator=generator)}


RULES = {
    "as long as there are positions": (lambda x, n: x, SizeRange(1, 32)),
    "longer": (lambda x, n: -x if n > 16 else x, SizeRange(1, 16)),
    "even": (lambda x, n: x.unflatten(1, (-1, 2)).flip(2).flatten(1, 2), SizeRange(2, 32, 2)),
    "not five": (lambda x, n: -x if n == 5 else x, SizeRange(1, 32, excluded=(5,))),
    "at least four": (lambda x, n: -x if n < 4 else x, SizeRange(4, 32)),
}


@pytest.mark.parametrize("name", RULES)
def test_the_range_is_that_of_the_code(name, tmp_path):
    rule, expected = RULES[name]
    model = Tokens(rule).eval()
    with pytest.warns(TraceWarning, match=f"holds for {expected.text('T')} in eval mode"):
        program = trace(model, batch(3, 8), dynamic=LENGTH)
    assert program.sizes == {"N": 3, "T": 8}
    assert [spec.shape for spec in program.input_specs] == [("N", "T"), ("N", "T")]
    program.save(tmp_path / "a.sparsify")
    for other in (program, program.clone(), Program.load(tmp_path / "a.sparsify")):
        assert other.ranges["eval"]["T"] == expected
        assert other.sizes == program.sizes
        for count, length in ((1, 1), (3, 4), (2, 5), (1, 16), (4, 17), (2, 31), (1, 32)):
            given = batch(count, length)
            if length in expected:
                torch.testing.assert_close(other(**given), model(**given))
            else:
                with pytest.raises(
                    TraceError, match=rf"holds for {expected.text('T')} in eval mode, found T = {length}"
                ):
                    other(**given)


def test_a_table_that_ends_is_found_by_trying():
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.positions, self.head = nn.Embedding(20, 8), nn.Embedding(13, 8), nn.Linear(8, 20)

        def forward(self, ids):
            return self.head(self.embedding(ids) + self.positions(torch.arange(ids.shape[1])))

    with pytest.warns(TraceWarning, match="holds for 1 <= T <= 13"):
        program = trace(Table(), batch(3, 8)["ids"], dynamic={"ids": {1: "T"}})
    assert program.ranges["eval"]["T"] == SizeRange(1, 13)


def test_training_gradients_hold_at_another_length():
    torch.manual_seed(0)
    model = Tokens().train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TraceWarning)
        program = trace(model, batch(3, 8), dynamic=LENGTH)
    for length in (3, 21):
        given = batch(2, length)
        want = torch.autograd.grad(model(**given).square().sum(), model.head.weight)[0]
        torch.testing.assert_close(torch.autograd.grad(program(**given).square().sum(), model.head.weight)[0], want)


def test_limits_are_tried_and_kept():
    with warnings.catch_warnings():
        warnings.simplefilter("error", TraceWarning)  # what was asked for is no surprise
        program = trace(Tokens(), batch(3, 8), dynamic=LENGTH, limits={"T": (4, 24)})
    assert program.ranges["eval"]["T"] == SizeRange(4, 24)
    with pytest.raises(TraceError, match="found T = 3"):
        program(**batch(2, 3))


def test_a_program_that_differs_at_another_length_is_refused():
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            return self.head(x) * len(x[0].tolist())  # a number of Python

    with pytest.raises(TraceError):
        trace(Hidden(), torch.rand(3, 6, 8), dynamic={"x": {1: "T"}})


def test_sizes_of_one_name_are_one_size():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TraceWarning)
        program = trace(Tokens(), batch(3, 8), dynamic=LENGTH)
    given = batch(3, 8)
    with pytest.raises(TraceError, match=r"share dimension T, found 8 and 7 \(dimension 1 of 'mask'\)"):
        program(given["ids"], given["mask"][:, :7])


def test_height_and_width():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TraceWarning)
        program = trace(model, torch.rand(3, 1, 8, 12), dynamic={"input": {2: "H", -1: "W"}})
    assert [spec.shape for spec in program.input_specs] == [("N", 1, "H", "W")]
    for height, width in ((1, 1), (1, 9), (9, 1), (5, 30), (2, 2)):
        x = torch.rand(2, 1, height, width)
        if height in program.ranges["eval"]["H"] and width in program.ranges["eval"]["W"]:
            torch.testing.assert_close(program(x), model(x))


def test_time_may_be_first_and_the_batch_second():
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU()).eval()
    program = trace(model, torch.rand(5, 3, 8), dynamic={"input": {0: "T", 1: "N"}})
    assert program.input_specs[0].shape == ("T", "N", 8)
    x = torch.rand(7, 1, 8)
    torch.testing.assert_close(program(x), model(x))


def test_a_length_of_one_is_doubled():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TraceWarning)
        program = trace(Tokens(), batch(1, 1), dynamic=LENGTH)
    assert program.sizes == {"N": 2, "T": 2}
    assert program(**batch(3, 9)).shape == (3, 9, 20)


@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM, nn.RNN])
@pytest.mark.parametrize("two_ways", [False, True])
def test_recurrent_layers_of_any_length(layer, two_ways):
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(20, 8)
            self.layer = layer(8, 6, num_layers=2, batch_first=True, bidirectional=two_ways)
            self.head = nn.Linear(12 if two_ways else 6, 20)

        def forward(self, ids):
            return self.head(self.layer(self.embedding(ids))[0])

    model = Recurrent().eval()
    program = trace(model, batch(3, 8)["ids"], dynamic={"ids": {1: "T"}})
    for length in (1, 5, 40):
        ids = batch(2, length)["ids"]
        torch.testing.assert_close(program(ids), model(ids))
    kernels = torch.ops.aten.gru.input.py_kernels, torch.ops.aten.lstm.input.py_kernels
    assert not any("recurrent_shapes" in str(getattr(k, "__module__", "")) for table in kernels for k in table.values())


def test_multiply_accumulates_are_those_of_the_example():
    model = nn.Linear(8, 4)
    fixed = trace(model, torch.rand(3, 6, 8)).costs()
    assert trace(model, torch.rand(3, 6, 8), dynamic={"input": {1: "T"}}).costs() == fixed


WRONG = {
    "input": ({"idz": {1: "T"}}, {}, "names the input 'idz'; expected one of ids, mask"),
    "place": ({"ids": {2: "T"}}, {}, r"dimension 2 of input 'ids', which has shape \[3, 8\]"),
    "no mapping": ({"ids": "T"}, {}, "found 'T' for 'ids'"),
    "name": ({"ids": {1: "the length"}}, {}, "calls dimension 1 of input 'ids' 'the length'"),
    "reserved": ({"ids": {1: "batch"}}, {}, "calls dimension 1 of input 'ids' 'batch'"),
    "sizes": ({"ids": {1: "T"}, "mask": {0: "T"}}, {}, "T is 8 in dimension 1 of 'ids' of the example, and 3"),
    "two names": ({"ids": {1: "S"}, "mask": {1: "T"}}, {}, "S and T have to be equal. Give both dimensions the name S"),
    "half": ({"ids": {1: "T"}}, {}, "fixes dimension T at 8 in train mode"),
    "limit": (LENGTH, {"S": (1, 9)}, "limits names the dimension 'S'; expected one of N, T"),
    "limits": (LENGTH, {"T": 9}, "smallest and a largest size, found 9"),
    "order": (LENGTH, {"T": (9, 2)}, "smallest and a largest size"),
    "outside": (LENGTH, {"T": (9, 20)}, "the example has T = 8, outside the limits 9 <= T <= 20"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_declarations_are_told(wrong):
    dynamic, limits, message = WRONG[wrong]
    with pytest.raises(TraceError, match=message):
        trace(Tokens(), batch(3, 8), dynamic=dynamic, limits=limits)


def test_a_fixed_length_names_the_way_out():
    program = trace(Tokens(), batch(3, 8))
    with pytest.raises(
        TraceError, match=r"only N may vary.* with dynamic=\{'ids': \{1: 'T'\}\} if dimension 1 is to vary"
    ):
        program(**batch(3, 9))


def test_sizes_that_follow_from_each_other_are_told_with_their_condition():
    class Next(nn.Module):
        def forward(self, rows, shorter):
            return (rows[:, 1:] + shorter).mean(1)

    rows = digits(4)[0].squeeze(1)
    with pytest.raises(
        TraceError, match=r"\(-1\).*T.*S ties T and S together. Sizes with different names vary independently"
    ):
        trace(Next(), (rows, rows[:, 1:]), dynamic={"rows": {1: "T"}, "shorter": {1: "S"}})


def test_texts_of_the_command():
    assert parsed(["ids:1=T", "mask:1=T", "x:-1=W", "T=1..512", "W=8.."]) == (
        {"ids": {1: "T"}, "mask": {1: "T"}, "x": {-1: "W"}},
        {"T": (1, 512), "W": (8, None)},
    )
    for text in ("ids=T", "ids:T", "T=1", "T=..5", "ids:1=", ""):
        with pytest.raises(TraceError, match="INPUT:PLACE=NAME"):
            parsed([text])
    assert parsed(["ids:1=T", "ids:1=T", "T=1..9", "T=1..9"]) == ({"ids": {1: "T"}}, {"T": (1, 9)})
    for texts, message in (
        (["ids:1=T", "ids:1=U"], "'ids:1=U' names ids:1 again, which is 'T' already"),
        (["T=1..9", "T=1..8"], "'T=1..8' gives T other sizes than before"),
    ):
        with pytest.raises(TraceError, match=message):
            parsed(texts)


def test_sizes_in_text():
    sizes = {"N": 2, "T": 7}
    assert [value_of(text, sizes) for text in (5, "T", "2*N*T", "((T - 1)//2) + 1", "Max(1, T - 9)")] == [
        5,
        7,
        28,
        4,
        1,
    ]
    for text in ("S", "T**2", "__import__('os')", "T.real", "T//(N - 2)", "(" * 200, "[T]"):
        assert value_of(text, sizes) is None


FORGED = {
    "unknown": {"sizes": {"S": 3}},
    "no size": {"sizes": {"T": 0}},
    "too large": {"sizes": {"T": 2**40}},
    "no name": {"ranges": {"train": {}, "eval": {"T; x": {"low": 1, "high": None, "step": 1, "excluded": []}}}},
    "one phase": {"ranges": {"eval": {"T": {"low": 1, "high": None, "step": 1, "excluded": []}}}},
    "step": {"ranges": {"train": {}, "eval": {"T": {"low": 1, "high": None, "step": 10**18, "excluded": []}}}},
}


@pytest.mark.parametrize("forged", FORGED)
def test_forged_sizes_are_refused(forged, tmp_path):
    path = tmp_path / "a.sparsify"
    trace(nn.Linear(8, 4), torch.rand(3, 6, 8), dynamic={"input": {1: "T"}}).save(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    document = json.loads(parts["program.json"]) | FORGED[forged]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (parts | {"program.json": json.dumps(document).encode()}).items():
            archive.writestr(name, data)
    with pytest.raises(LoadError, match="form of a program"):
        Program.load(path)
