"""Exports that torch.onnx makes with less work: which programs, and that their files are those of the long way."""

from __future__ import annotations

import collections
from typing import Any

import onnx
import pytest
import torch
from torch import fx

from sparsify.exporters import export, shortcuts
from tests.cases import case

aten = torch.ops.aten


def graph(*operators: Any, returned: int = -1, twice: bool = False) -> fx.Graph:
    """Operators one after the other, and which of the values is returned."""
    made = fx.Graph()
    values = [made.placeholder("x")]
    for operator in operators:
        values.append(made.call_function(operator, (values[-1],)))
    made.output((values[returned],) * (1 + twice))
    return made


@pytest.mark.parametrize(
    ("found", "plain"),
    [
        (graph(aten.relu.default, aten.neg.default), True),
        (graph(aten.relu.default, aten.alpha_dropout.default), False),  # not registered
        (graph(aten.relu_.default), False),
        (graph(aten.relu.default, returned=0), False),
        (graph(aten.relu.default, twice=True), False),
    ],
)
def test_a_graph_is_converted_as_it_is_where_every_operator_can_be_and_nothing_is_written(found, plain):
    known = {aten.relu.default, aten.neg.default, aten.relu_.default}
    assert shortcuts.is_decomposed(found, known.__contains__) == plain


def test_a_graph_with_parts_of_its_own_is_no_plain_one():
    found = graph(aten.relu.default)
    with found.inserting_before():
        found.get_attr("branch")
    assert not shortcuts.is_decomposed(found, lambda operator: True)


def file_of(name, path):
    found = case(name)
    export(found.trace().eval(), path, inputs=found.args, form="dense")
    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


def test_both_ways_lead_to_the_same_operators(tmp_path, monkeypatch):
    short = file_of("conv_bn", tmp_path / "short.onnx")
    monkeypatch.setattr(shortcuts, "is_decomposed", lambda *_: False)
    assert short == file_of("conv_bn", tmp_path / "long.onnx")
    monkeypatch.setattr(shortcuts, "EXPORTER", "torch.no_such_place")
    assert short == file_of("conv_bn", tmp_path / "other.onnx")


def test_the_table_of_decompositions_is_made_once(tmp_path, monkeypatch):
    from torch.onnx._internal.exporter import _decomp

    made, build = [], _decomp.create_onnx_friendly_decomposition_table

    def counted(registered):
        made.append(build(registered))
        return made[-1]

    monkeypatch.setattr(_decomp, "create_onnx_friendly_decomposition_table", counted)
    monkeypatch.setattr(shortcuts, "is_decomposed", lambda *_: False)
    first, second = (file_of("mlp", tmp_path / f"{i}.onnx") for i in range(2))
    assert first == second and len(made) == 1 and made[0]
    assert _decomp.create_onnx_friendly_decomposition_table is counted


def test_what_cannot_be_converted_by_the_shortcut_is_converted_without(tmp_path, monkeypatch):
    monkeypatch.setattr(shortcuts, "is_decomposed", lambda *_: True)  # also where an operator is not registered
    assert file_of("dropouts", tmp_path / "m.onnx")["Gemm"] == 2
