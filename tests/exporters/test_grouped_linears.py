"""Grouped layers found in a file by their marks, with what belongs to them and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.exporters.conversion import convert
from sparsify.exporters.graphs import leaves
from sparsify.exporters.grouped_linears import find_grouped_linears, weight_name
from sparsify.ir.grouped_linear import GROUPED_LINEAR
from sparsify.timing import values_of
from tests.exporters.grouped_mlp import fused_products, load, single_samples


@pytest.mark.parametrize("chunk", [1, 4])
def test_layers_are_found_with_what_belongs_to_them(chunk):
    first, second = find_grouped_linears(load(chunk).graph)
    assert first.weight.shape == (4, 32, 16) and second.weight.shape == (4, 32, 32)
    assert first.chunk == second.chunk == chunk and first.rectified and second.rectified
    assert first.index.shape == (4, 16 // chunk) and second.source.name == first.result.name
    assert first.bias is not None and first.bias.shape == (128,)


def test_a_layer_that_was_made_into_something_else_is_none():
    model = load(1)
    product = next(node for node in model.graph if node.op_type == "MatMul")
    product.op_type = "Gemm"
    assert len(find_grouped_linears(model.graph)) == 1


@pytest.mark.parametrize("chunk", [1, 4])
def test_operators_that_compute_a_layer_without_its_mark_are_no_layer(chunk):
    model = load(chunk)
    for node in model.graph:
        node.metadata_props.clear()
    assert find_grouped_linears(model.graph) == ()


class Mixed(nn.Module):
    """Three layers that read the same chunks, two of them by one table; one whose groups read their own parts; one group."""

    def __init__(self):
        super().__init__()
        shapes = [(2, 3, 4), (2, 3, 4), (2, 3, 4), (2, 3, 3), (5, 4)]
        self.weights = nn.ParameterList([torch.randn(shape) for shape in shapes])
        self.register_buffer("alone", torch.tensor([[0, 2], [1, 3]]))
        self.register_buffer("shared", torch.tensor([[1, 2], [0, 3]]))
        self.register_buffer("rows", torch.tensor([0, 1, 4, 5]))

    def forward(self, x):
        x, tables = x.t(), (self.alone, self.shared, self.shared)
        made = sum(GROUPED_LINEAR(x, self.weights[i], table, None, 2) for i, table in enumerate(tables))
        parts = GROUPED_LINEAR(made, self.weights[3], None, None, 1)
        return GROUPED_LINEAR(parts, self.weights[4], self.rows, None, 1).t()


def test_layers_of_every_kind_compute_the_same_and_those_with_a_selection_of_their_own_are_found():
    torch.manual_seed(0)
    model, x = Mixed(), torch.randn(3, 8)
    file = convert(sp.Pipeline.parse("deploy")(sp.trace(model, (x,)).eval()), [x], 20)
    feeds, output = {str(file.graph.inputs[0].name): x.numpy()}, str(file.graph.outputs[0].name)
    for form in (file, fused_products(file), single_samples(fused_products(file))):
        assert np.allclose(model(x).detach(), values_of(form, [feeds])[output][0], atol=1e-5)
    layers = find_grouped_linears(file.graph)
    assert [layer.name for layer in layers] == ["weights.0", "weights.4"]
    assert [layer.chunk for layer in layers] == [2, 1]
    assert [layer.weight.shape for layer in layers] == [(2, 3, 4), (1, 5, 4)]
    for layer in layers:
        inner = {value for node in layer.nodes for value in node.outputs} - {layer.result}
        assert all(use.node in layer.nodes for value in inner for use in value.uses())


def test_a_value_leaves_where_only_its_shape_changes_on_the_way():
    model = load(1)
    first, *_, last = find_grouped_linears(model.graph)
    assert not leaves(first.result) and not leaves(last.result) and leaves(model.graph.outputs[0])
    turned = next(use.node for use in last.result.uses() if use.node.op_type == "Transpose")
    model.graph.outputs[0] = turned.outputs[0]
    assert leaves(last.result)


def test_names_of_weights():
    assert weight_name("phase.body.0.weight") == "body.0.weight" and weight_name("val_3") == "val_3"
