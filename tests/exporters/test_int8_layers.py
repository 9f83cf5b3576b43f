"""Layers cut out of their files: each form computes the layer, and integers go in and out."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from torch import nn

import sparsify as sp
from sparsify.exporters import int8_layers, skeleton
from sparsify.exporters.graphs import Writer
from sparsify.exporters.grouped_linears import find_grouped_linears
from tests.cases import digits
from tests.exporters.grouped_mlp import images, kinds, load
from tests.exporters.test_int8_dense import convolutions


@pytest.fixture
def timed(monkeypatch):
    """What would be timed, by weight and form."""
    found = []

    def times(models, **options):
        found.append((models, options))
        return dict.fromkeys(models, 1.0)

    monkeypatch.setattr(int8_layers, "times", times)
    return found


def test_grouped_layers_alone_in_both_precisions(timed):
    layers = int8_layers.time_layers({"grouped": load(4)}, {"x": images(8)[0]}, threads=3)
    assert layers == {name: {"fp32 grouped": 1.0, "int8 grouped": 1.0} for name in ("first.weight", "second.weight")}
    models, options = timed[0]
    assert options["threads"] == 3
    (fp32, values), (integers, whole) = models["fp32 grouped"], models["int8 grouped"]
    assert kinds(fp32).count("MatMul") == 1 and kinds(integers).count("QLinearMatMul") == 1
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(kinds(integers))
    (given,), (made,) = values.values(), whole.values()
    assert given.shape == made.shape == (64, 8) and made.dtype == np.uint8


def test_dense_convolutions_alone_in_both_precisions(timed):
    layers = int8_layers.time_layers({"dense": convolutions()}, {"x": images(2)[0]}, threads=1)
    assert {name: set(forms) for name, forms in layers.items()} == {
        name: {"fp32 dense", "int8 dense"} for name in ("a", "b", "c")
    }
    integers, feeds = timed[1][0]["int8 dense"]
    assert next(iter(feeds.values())).shape == (2, 4, 8, 8)
    assert kinds(integers)[-1] == "QuantizeLinear" and kinds(integers)[0] == "DequantizeLinear"


def test_a_convolution_in_groups_is_timed_with_its_selection():
    model = convolutions()
    node = model.graph.node("conv_d")
    write = Writer(node, model.graph)
    order = write.constant("order", np.array([3, 2, 1, 0]))
    node.replace_input_with(0, write.call("Gather", [node.inputs[0], order], "picked", axis=1))
    assert int8_layers._layers(model)["d"] == ("5", "6")


def test_really_timed():
    layers = int8_layers.time_layers({"grouped": load(1)}, {"x": images(1)[0]}, threads=1)
    assert set(layers) == {layer.name for layer in find_grouped_linears(load(1).graph)}
    assert all(value > 0 for forms in layers.values() for value in forms.values())


@pytest.mark.parametrize(("pattern", "most"), [("", 0), ("insert-masks{pattern=grouped:32 density=0.25}", 0)])
def test_shapes_are_inferred_only_where_a_graph_lost_them_and_without_weights(pattern, most, tmp_path, monkeypatch):
    """Three layers; in a trial of forms and of each layer cut out of the files."""
    x, _ = digits(64)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    program = sp.trace(model, (x,)).eval()
    program = sp.Pipeline.parse(pattern)(program) if pattern else program
    sizes, real = [], onnx.shape_inference.infer_shapes

    def counted(given, *arguments, **options):
        sizes.append(given.ByteSize())
        return real(given, *arguments, **options)

    skeleton._inferred.cache_clear()
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", counted)
    sp.export(program, tmp_path / "m.onnx", inputs=[x], precision="int8", calibration=[x])
    assert len(sizes) <= most and max(sizes, default=0) < 0.2 * (tmp_path / "m.onnx").stat().st_size
