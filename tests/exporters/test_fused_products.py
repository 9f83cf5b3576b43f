"""Grouped layers as convolutions: the same outputs, the same weights, fused by the runtime."""

from __future__ import annotations

import collections

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from tests.exporters.grouped_mlp import fused_products, images, load, run, single_samples


def kinds(nodes):
    return collections.Counter(node.op_type for node in nodes)


def values(model):
    return np.sort(
        np.concatenate([numpy_helper.to_array(i).ravel() for i in model.graph.initializer if i.data_type == 1])
    )


@pytest.mark.parametrize("batch", [1, 20])
@pytest.mark.parametrize("written", [lambda model: model, single_samples])
def test_outputs_and_weights_are_those_of_the_products(written, batch):
    model, (x, _) = load(1), images(batch)
    fused = fused_products(model)
    onnx.checker.check_model(fused)
    assert kinds(fused.graph.node)["Conv"] == 2 and "MatMul" not in kinds(fused.graph.node)
    assert np.array_equal(values(fused), values(model))
    want, have = run(model, x, "logits")[0], run(written(fused), x, "logits")[0]
    assert np.abs(want - have).max() < 1e-5 * np.abs(want).max()


def test_the_runtime_computes_bias_and_relu_with_the_product(tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        fused_products(load(1)).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = kinds(onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert found["FusedConv"] == found["Gather"] == 2 and not found.keys() & {"MatMul", "Relu", "Add"}


def test_layers_that_read_chunks_stay():
    model = load(4)
    assert fused_products(model) is model


def test_a_weight_that_is_read_twice_stays():
    model = load(1)
    weight = next(node for node in model.graph.node if node.op_type == "MatMul").input[0]
    model.graph.node.append(onnx.helper.make_node("Identity", [weight], ["copy"], name="copy"))
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info("copy"))
    assert kinds(fused_products(model).graph.node)["Conv"] == 1
