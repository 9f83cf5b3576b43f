"""Grouped layers as convolutions: the same outputs, the same weights, fused by the runtime."""

from __future__ import annotations

import collections

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from sparsify.exporters.graphs import Writer
from tests.exporters.grouped_mlp import arrays, fused_products, images, load, run, single_samples


def kinds(nodes):
    return collections.Counter(node.op_type for node in nodes)


def values(model):
    return np.sort(np.concatenate([value.ravel() for value in arrays(model).values() if value.dtype == np.float32]))


@pytest.mark.parametrize("batch", [1, 20])
@pytest.mark.parametrize("written", [lambda model: model, single_samples])
def test_outputs_and_weights_are_those_of_the_products(written, batch):
    model, (x, _) = load(1), images(batch)
    fused = fused_products(model)
    onnx.checker.check_model(ir.to_proto(fused))
    assert kinds(fused.graph)["Conv"] == 2 and "MatMul" not in kinds(fused.graph)
    assert np.array_equal(values(fused), values(model))
    want, have = run(model, x, "logits")[0], run(written(fused), x, "logits")[0]
    assert np.abs(want - have).max() < 1e-5 * np.abs(want).max()


def test_the_runtime_computes_bias_and_relu_with_the_product(tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        ir.to_proto(fused_products(load(1))).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = kinds(onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert found["FusedConv"] == found["Gather"] == 2 and not found.keys() & {"MatMul", "Relu", "Add"}


def test_layers_that_read_chunks_stay():
    model = load(4)
    assert fused_products(model) is model


def test_a_weight_that_is_read_twice_stays():
    model = load(1)
    product = next(node for node in model.graph if node.op_type == "MatMul")
    model.graph.outputs.append(Writer(product, model.graph).call("Identity", product.inputs[:1], "copy"))
    assert kinds(fused_products(model).graph)["Conv"] == 1
