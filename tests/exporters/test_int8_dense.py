"""Dense layers in integers: which, and what stays between them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsify.errors import ExportError
from sparsify.exporters import int8_dense
from tests.exporters.grouped_mlp import arrays, grouped_int8, images, in_batches, run, with_dense_layer


def test_dense_and_grouped_layers_together():
    model, (x, _) = with_dense_layer(), images()
    assert int8_dense.dense_layers(model) == {"between_node": "eye"}
    both = int8_dense.dense_int8(grouped_int8(model, in_batches(x[:200])), in_batches(x[:200]))
    before, after = (run(m, x[1200:], "logits")[0] for m in (model, both))
    assert (before.argmax(1) == after.argmax(1)).mean() > 0.98
    assert np.abs(before - after).max() < 0.1 * np.abs(before).max()


def convolutions():
    """Two convolutions with a residual addition, a depthwise one, one in groups, and an output."""
    rng = np.random.default_rng(0)
    shapes = {"a": (4, 1, 3, 3), "b": (4, 4, 3, 3), "c": (4, 1, 3, 3), "d": (4, 2, 3, 3), "e": (4, 4, 3, 3)}
    conv = lambda name, source, to, groups=1: helper.make_node(  # ruff: ignore[lambda-assignment]
        "Conv", [source, name], [to], name=f"conv_{name}", group=groups, pads=[1] * 4
    )
    nodes = [
        conv("a", "x", "1"), helper.make_node("Relu", ["1"], ["2"], name="relu"), conv("b", "2", "3"),
        helper.make_node("Add", ["2", "3"], ["4"], name="add"), conv("c", "4", "5", 4), conv("d", "5", "6", 2),
        helper.make_node("Relu", ["6"], ["7"], name="float"), conv("e", "7", "y"),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 8, 8])],
        [numpy_helper.from_array(rng.normal(size=s).astype(np.float32) / 3, n) for n, s in shapes.items()],
    )  # fmt: skip
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def test_convolutions_in_groups_and_outputs_stay_in_floating_point():
    assert int8_dense.dense_layers(convolutions()) == {"conv_a": "a", "conv_b": "b", "conv_c": "c"}


def test_what_lies_between_layers_in_integers_stays_in_integers():
    model = convolutions()
    assert int8_dense._with_followers(model, {"conv_a", "conv_b", "conv_c"}) == [
        "conv_a",
        "relu",
        "conv_b",
        "add",
        "conv_c",
    ]
    assert int8_dense._with_followers(model, {"conv_b"}) == ["conv_b"]


def test_values_stay_close_and_only_the_chosen_layers_change():
    model, (x, _) = convolutions(), images(64)
    for layers, weights in ((None, {"a", "b", "c"}), ({"conv_b"}, {"b"})):
        written = int8_dense.dense_int8(model, in_batches(x), layers)
        onnx.checker.check_model(ir.to_proto(written))
        quantized = {name: value for name, value in arrays(written).items() if name.endswith("_quantized")}
        assert quantized.keys() == {f"{name}_quantized" for name in weights}
        assert np.abs(quantized["b_quantized"]).max() <= 64  # 7 bits
        want, have = run(model, x)[0], run(written, x)[0]
        assert np.abs(want - have).max() < 0.05 * np.abs(want).max()


def test_a_file_the_quantizer_refuses_is_an_error(monkeypatch):
    def refuse(*_, **__):
        raise ValueError("no scale\nfor it")

    monkeypatch.setattr(int8_dense.quantization, "quantize_static", refuse)
    with pytest.raises(ExportError, match="quantizer failed: no scale"):
        int8_dense.dense_int8(convolutions(), in_batches(images(4)[0]))
