"""Nodes recorded one by one have the shape and type of their values, whatever varies."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import PassError
from sparsify.ir import surgery
from sparsify.ir.recording import Recorder
from sparsify.ir.traits import named_outputs
from sparsify.passes.contract.specs import false_specs

aten = torch.ops.aten


def program_of(x, dynamic=None):
    program = sp.trace(nn.Linear(4, 3), (x,), dynamic=dynamic or {}).eval()
    return program, named_outputs(program.output_node("eval"))["logits"], Recorder(program, "the test")


@pytest.mark.parametrize(
    ("x", "dynamic", "lead"), [(torch.rand(2, 4), None, "N"), (torch.rand(2, 5, 4), {"input": {1: "T"}}, "N, T")]
)
def test_results_have_their_own_shape_and_type(x, dynamic, lead, tmp_path):
    program, logits, record = program_of(x, dynamic)
    pair = record(aten.sort.default, logits, -1, True)
    highest = record(aten.select.int, record(operator.getitem, pair, 0), -1, 0)
    inside = record(aten.ge.Tensor, logits, record(aten.unsqueeze.default, highest, -1))
    found = {
        "top": highest, "place": record(operator.getitem, pair, 1), "inside": inside, "count": record(aten.sum.dim_IntList, inside, [-1]),
        "twice": record(aten.cat.default, [logits, logits], -1), "mean": record(aten.mean.dim, logits, [-1], True),
    }  # fmt: skip
    assert {name: str(node.meta["spec"]) for name, node in found.items()} == {
        "top": f"f32[{lead}]", "place": f"i64[{lead}, 3]", "inside": f"bool[{lead}, 3]", "count": f"i64[{lead}]",
        "twice": f"f32[{lead}, 6]", "mean": f"f32[{lead}, 1]",
    }  # fmt: skip
    assert "spec" not in pair.meta
    for name, node in found.items():
        surgery.append_output(program, "eval", name, node)
    surgery.finish(program)
    program.verify()
    assert false_specs(program, "eval", (x,)) == []
    program.save(tmp_path / "p.sparsify")
    again, want = sp.Program.load(tmp_path / "p.sparsify").eval().outputs(x), program.outputs(x)
    assert all(torch.equal(again[name], value) for name, value in want.items()) and bool(want["inside"].any(-1).all())


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda record, logits: record(aten.flatten.using_ints, logits, 0), "has a size that changes with the inputs and is none of N"),
        (lambda record, logits: record(aten.nonzero.default, logits), "the test cannot record aten.nonzero"),
        (lambda record, logits: record(aten.select.int, logits, 1, 7), "the test cannot record aten.select.int: IndexError"),
    ],
)  # fmt: skip
def test_a_result_without_a_shape_is_refused(made, words):
    _, logits, record = program_of(torch.rand(2, 4))
    with pytest.raises(PassError, match=words):
        made(record, logits)
