"""Grouped layers found again in a file, with what belongs to them and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsify.exporters.grouped_linears import View, find_grouped_linears, weight_name
from tests.exporters.grouped_mlp import load


@pytest.mark.parametrize("chunk", [1, 4])
def test_layers_are_found_with_what_belongs_to_them(chunk):
    first, second = find_grouped_linears(load(chunk))
    assert first.weight.shape == (4, 32, 16) and second.weight.shape == (4, 32, 32)
    assert first.chunk == second.chunk == chunk and first.rectified and second.rectified
    assert first.index.shape == (4, 16 // chunk) and second.source == first.result
    assert first.bias is not None and first.bias.shape == (128,)


def product(*before, index=None, weight=(2, 3, 4), rows=8):
    """y = W @ x with nodes before it, and constants."""
    tensors = {"w": np.ones(weight, np.float32), **({} if index is None else {"i": np.array(index)})}
    tensors["shape"] = np.array([weight[0], weight[2], -1]) if len(weight) == 3 else np.array([-1])
    nodes = [*before, helper.make_node("MatMul", ["w", "g" if before else "x"], ["y"])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, "batch"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def test_a_product_of_all_rows_is_a_group_of_one():
    (layer,) = find_grouped_linears(product(weight=(3, 8)))
    assert layer.index is None and layer.weight.shape == (1, 3, 8) and layer.name == "w" and layer.bias is None


def test_a_gather_along_columns_is_no_grouped_layer():
    assert (
        find_grouped_linears(
            product(helper.make_node("Gather", ["x", "i"], ["g"], axis=1), index=[0, 1], weight=(3, 8))
        )
        == ()
    )


def test_a_value_leaves_where_only_its_shape_changes_on_the_way():
    model = load(1)
    view, layers = View(model), find_grouped_linears(model)
    assert not view.leaves(layers[0].result) and view.leaves("logits")
    turned = next(node for node in model.graph.node if node.op_type == "Transpose" and node.input[0] != "x")
    turned.output[0] = "turned"
    model.graph.output[0].name = "turned"
    assert View(model).leaves(turned.input[0])


def test_names_of_weights():
    assert weight_name("phase.body.0.weight") == "body.0.weight" and weight_name("val_3") == "val_3"
