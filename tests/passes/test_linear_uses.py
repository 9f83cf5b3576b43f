"""Which linear layers are grouped at the rows that a program computes: those that gain more than the transposes around them cost."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import PassError
from sparsify.ir.grouped_linear import GROUPED_LINEAR
from sparsify.passes import LowerGroupedLinear, Pipeline, linear_uses
from tests.cases import digits

aten = torch.ops.aten


class Tokens(nn.Module):
    """Layers of width 64 over the pixels of an image as tokens [N, T, 64]: several in a row, or one between others that are dense."""

    def __init__(self, count: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(8, 64)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(count))

    def forward(self, x):
        x = torch.tanh(self.up(x))
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


@functools.cache
def deployed(count: int = 4, *, dynamic: bool = True, tokens: int = 8):
    x = digits(4)[0].squeeze(1)[:, :tokens].contiguous()
    program = sp.trace(Tokens(count), x, dynamic={"x": {1: "T"}} if dynamic else {}).eval()
    masks = "insert-masks{pattern=grouped:32 density=0.1 allocation=uniform keep-dense=up.weight} | fold-masks | deploy"
    return Pipeline.parse(masks)(program)


def lowered(program, **options):
    made, (log,) = Pipeline((LowerGroupedLinear(**options),)).run(program)
    return [name for name in log.changed if name.startswith("layers")], dict(log.skipped), made


@pytest.mark.parametrize(("tokens", "grouped"), [(1, 0), (64, 4)])
def test_the_rows_are_the_batch_times_the_tokens(tokens, grouped):
    names, reasons, _ = lowered(deployed(), sizes=("N=1", f"T={tokens}"))
    assert len(names) == grouped
    assert grouped or "over 1 row" in reasons["layers.1.weight"]
    names, _, _ = lowered(deployed(), sizes=(f"N={tokens}", "T=1"))
    assert len(names) == grouped


def test_sizes_of_the_example_and_fixed_ones_count_where_no_others_are_given():
    assert len(lowered(deployed())[0]) == 4  # 4 samples of 8 tokens
    assert len(lowered(deployed(dynamic=False, tokens=1), sizes=("N=1",))[0]) == 0
    assert len(lowered(deployed(dynamic=False, tokens=1), sizes=("N=64",))[0]) == 4


def test_one_layer_pays_for_its_transposes_and_a_chain_shares_them():
    sizes = ("N=1", "T=6")
    one, reasons, _ = lowered(deployed(1), sizes=sizes)
    assert one == [] and "over 6 rows, groups and the transposes around them" in reasons["layers.0.weight"]
    chain, _, made = lowered(deployed(4), sizes=sizes)
    targets = [node.target for node in made.phases["eval"].graph.nodes]
    assert len(chain) == 4 and targets.count(aten.permute.default) == 2
    assert len(lowered(deployed(1), sizes=sizes, form="grouped")[0]) == 1  # asked for, and not predicted


def test_layers_over_a_matrix_are_one_operator_and_weigh_the_selection_of_one_sample():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), *(part for _ in range(3) for part in (nn.Linear(64, 64), nn.ReLU())))
    masks = "insert-masks{pattern=grouped:16 density=0.1 allocation=uniform} | fold-masks | deploy"
    program = Pipeline.parse(masks)(sp.trace(model, digits(4)[0]).eval())
    few, many = (Pipeline((LowerGroupedLinear(sizes=(f"N={n}",)),))(program) for n in (1, 128))
    counts = [sum(n.target is GROUPED_LINEAR for n in made.phases["eval"].graph.nodes) for made in (few, many)]
    assert counts == [0, 3]


class Beside(nn.Module):
    """A sum of a layer and a function of what the layer reads, which is feature-major as well."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        made = self.first(x)
        return self.last(torch.tanh(x) + made)


def test_the_cost_model_counts_the_transposes_that_the_pass_inserts(monkeypatch):
    counted = []
    monkeypatch.setattr(linear_uses, "turn_time", lambda use, features: counted.append(features) or 0.0)
    x = digits(4)[0].flatten(1)
    masks = "insert-masks{pattern=grouped:32 density=0.1 allocation=uniform} | fold-masks | deploy"
    names, _, made = lowered(Pipeline.parse(masks)(sp.trace(Beside(), x).eval()), sizes=("N=128",))
    targets = [node.target for node in made.phases["eval"].graph.nodes]
    assert targets.count(aten.permute.default) == len(counted) == 2, names


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (("N",), "written NAME=SIZE"),
        (("N=0",), "at least 1"),
        (("S=3",), "sizes name S, which is not a dimension that varies; those of this program are N, T"),
    ],
)
def test_sizes_that_mean_nothing_are_refused(sizes, said):
    with pytest.raises(PassError, match=said):
        lowered(deployed(), sizes=sizes)


def test_an_export_weighs_the_sizes_of_its_inputs(tmp_path):
    """One token a sample stays dense, many are grouped."""
    x = digits(4)[0].squeeze(1)
    program = sp.trace(Tokens(2), x, dynamic={"x": {1: "T"}}).eval()
    masks = "insert-masks{pattern=grouped:32 density=0.1 allocation=uniform keep-dense=up.weight}"
    program = Pipeline.parse(masks)(program).eval()
    one, many = (
        sp.export(program, tmp_path / "m.onnx", inputs=given).forms for given in (x[:, :1], x.repeat(1, 16, 1))
    )
    assert "grouped" not in one.values() and "over 1 row" in one["layers.1.weight"]
    assert many["layers.1.weight"] == "grouped"
