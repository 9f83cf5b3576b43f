"""int8 files: integers worked by hand, against a slow oracle, and on digits."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sparsify.errors import ExportError
from sparsify.exporters import int8, int8_dense
from sparsify.exporters.grouped_linears import GroupedLinear, find_grouped_linears
from sparsify.exporters.int8_grouped import Scale, best_scale, quantize_layer, write_grouped_int8
from tests.cases import digits
from tests.exporters.grouped_mlp import load, run


def layer(weight, bias=None, *, chunk=1):
    weight = np.array(weight, np.float32)
    index = np.zeros((len(weight), weight.shape[2] // chunk), np.int64)
    return GroupedLinear((), "x", "y", weight, None if bias is None else np.array(bias, np.float32), index, chunk, True)


def images(count=1797):
    x, y = digits(count)
    return x.numpy(), y.numpy()


def test_a_scale_by_hand():
    assert Scale(0.5, 3).quantize(np.array([-9.0, 0.0, 0.74, 0.76, 500.0])).tolist() == [0, 3, 4, 5, 255]
    assert Scale(0.5, 3).dequantize(np.array([0, 3, 255])).tolist() == [-1.5, 0.0, 126.0]


def test_the_range_covers_what_was_seen_unless_clipping_costs_less():
    spread = np.linspace(-1.0, 3.0, 1000)
    assert best_scale([spread], rectified=False) == Scale(4 / 255, 64)
    assert best_scale([spread], rectified=True) == Scale(3 / 255, 0)
    outlier = np.append(np.random.default_rng(0).normal(size=100_000), 8.0)
    assert best_scale([outlier], rectified=True).scale < 0.96 * 8 / 255
    assert best_scale([np.zeros(4)], rectified=True).scale > 0


def test_weights_and_bias_by_hand():
    # Scale 1.27 / 127 = 0.01. The unit of the sum is 0.5 * 0.01: bias 0.1 and -0.02 are 20 and -4 units; four constants of 1 express them.
    whole = quantize_layer(layer([[[1.27, -0.5], [0.0, 0.02]]], [0.1, -0.02]), Scale(0.5, 0))
    assert whole.scale == pytest.approx(0.01)
    assert (whole.constant, whole.extra) == (1, 4)
    assert (whole.weight.astype(int) - 128).tolist() == [[[127, -50, 5, 5, 5, 5], [0, 2, -1, -1, -1, -1]]]


@pytest.mark.parametrize("zero", [0, 100, 250])
@pytest.mark.parametrize("chunk", [1, 8])
@pytest.mark.parametrize("size", [1e-4, 1.0, 300.0])
def test_the_bias_is_right_to_half_a_constant(zero, chunk, size):
    rng, source = np.random.default_rng(0), Scale(0.02, zero)
    bias = rng.normal(scale=size, size=24)
    whole = quantize_layer(layer(rng.normal(size=(2, 12, 16)), bias, chunk=chunk), source)
    columns = whole.extra * chunk
    assert 0 <= whole.constant <= 255 and columns % chunk == 0
    sums = (whole.weight[..., 16:].astype(int) - 128).sum(-1) * (whole.constant - zero)
    unit = source.scale * whole.scale
    assert np.abs(sums.reshape(-1) * unit - bias).max() <= unit * (0.5 + abs(whole.constant - zero) / 2) * 1.001
    assert abs(whole.constant - zero) <= max(1.0, math.ceil(np.abs(bias).max() / unit / 127 / columns))


@pytest.mark.parametrize("chunk", [1, 4])
def test_layers_are_found_with_what_belongs_to_them(chunk):
    first, second = find_grouped_linears(load(chunk))
    assert first.weight.shape == (4, 32, 16) and second.weight.shape == (4, 32, 32)
    assert first.chunk == second.chunk == chunk and first.rectified and second.rectified
    assert first.index.shape == (4, 16 // chunk) and second.source == first.result
    assert first.bias is not None and first.bias.shape == (128,)


@pytest.mark.parametrize("chunk", [1, 4])
def test_the_file_computes_what_a_loop_over_integers_gives(chunk):
    model, (x, _) = load(chunk), images(40)
    layers = find_grouped_linears(model)
    names = [name for part in layers for name in (part.source, part.result)]
    seen = int8.observe(model, names, {"x": x})
    written = write_grouped_int8(model, layers, seen)
    onnx.checker.check_model(written)
    stages = [f"{name}_integers" for name in (layers[0].source, layers[0].result, layers[1].result)]
    written.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in stages)
    found = [values.astype(np.int64) for values in run(written, x, *stages)]
    source = best_scale(seen[layers[0].source], rectified=False)
    given = source.quantize(np.concatenate(seen[layers[0].source], axis=1))
    assert np.abs(found[0] - given).max() <= 1  # pixels are multiples of 1/16: many lie halfway
    for part, values, have in zip(layers, found[:-1], found[1:], strict=True):
        made = best_scale(seen[part.result], rectified=True)
        whole = quantize_layer(part, source)
        want = np.empty_like(have)
        for row in range(len(want)):
            group, place = divmod(row, part.weight.shape[1])
            read = (part.index[group][:, None] * part.chunk + np.arange(part.chunk)).reshape(-1)
            constant = np.full((whole.extra * part.chunk, values.shape[1]), whole.constant)
            sums = (whole.weight[group, place].astype(int) - 128) @ (
                np.concatenate([values[read], constant]) - source.zero
            )
            want[row] = np.clip(np.rint(sums * (source.scale * whole.scale / made.scale)), 0, 255)
        assert np.abs(have - want).max() <= 1 and (have != want).mean() < 0.001  # the runtime rounds in float32
        source = made


@pytest.mark.parametrize("chunk", [1, 4])
def test_digits_survive_and_activations_stay_integers(chunk):
    model, (x, y) = load(chunk), images()
    written = grouped_int8(model, {"x": x[:200]})
    kinds = [node.op_type for node in written.graph.node]
    assert kinds.count("QLinearMatMul") == 2
    assert kinds.count("QuantizeLinear") == kinds.count("DequantizeLinear") == 1
    assert "MatMul" not in kinds and {node.domain for node in written.graph.node} == {""}
    before, after = (run(m, x[1200:], "logits")[0].argmax(1) for m in (model, written))
    assert (before == after).mean() > 0.98
    assert abs((after == y[1200:]).mean() - (before == y[1200:]).mean()) < 0.02


def test_dense_and_grouped_layers_together():
    model, (x, _) = with_dense_layer(), images()
    assert int8_dense.dense_layers(model) == {"between": "eye"}
    both = int8_dense.dense_int8(grouped_int8(model, {"x": x[:200]}), {"x": x[:200]})
    before, after = (run(m, x[1200:], "logits")[0] for m in (model, both))
    assert (before.argmax(1) == after.argmax(1)).mean() > 0.98
    assert np.abs(before - after).max() < 0.1 * np.abs(before).max()


def test_a_network_whose_hidden_values_leave_the_file_keeps_them():
    model, (x, _) = load(1), images(64)
    hidden = find_grouped_linears(model)[0].result
    model.graph.output.append(onnx.helper.make_tensor_value_info(hidden, onnx.TensorProto.FLOAT, [128, "batch"]))
    written = grouped_int8(model, {"x": x})
    want, have = run(model, x, hidden)[0], run(written, x, hidden)[0]
    assert np.abs(want - have).max() < 0.03 * np.abs(want).max()


def grouped_int8(model, calibration):
    layers = find_grouped_linears(model)
    names = sorted({name for layer in layers for name in (layer.source, layer.result)})
    return write_grouped_int8(model, layers, int8.observe(model, names, calibration))


def timed(monkeypatch, *milliseconds, layers=None):
    """Trials that take these times, file by file."""
    order = iter(milliseconds)
    monkeypatch.setattr(int8, "times", lambda models, **_: {name: next(order) for name in models})
    monkeypatch.setattr(int8, "time_layers", lambda models, calibration, **_: layers or {})


def with_dense_layer():
    """The file with a layer of its own between the grouped ones and the head."""
    model = load(1)
    head = next(node for node in model.graph.node if node.op_type == "Gemm")
    weight = np.eye(128, dtype=np.float32)
    before = onnx.helper.make_node("MatMul", [head.input[0], "eye"], ["between"], name="between")
    model.graph.node.insert(list(model.graph.node).index(head), before)
    next(node for node in model.graph.node if node.op_type == "Gemm").input[0] = "between"
    model.graph.initializer.append(numpy_helper.from_array(weight, "eye"))
    return model


def test_the_fastest_of_the_trials_comes_first(monkeypatch):
    timed(monkeypatch, 5.0, 4.0, 3.0, 2.0)
    found, _ = int8.quantize({"grouped": with_dense_layer()}, {"x": images(64)[0]})
    assert [trial.name for trial, _ in found] == [
        "grouped, dense and grouped layers int8", "grouped, grouped layers int8", "grouped, dense layers int8", "grouped, fp32",
    ]  # fmt: skip
    assert [trial.integers for trial, _ in found] == [3, 2, 1, 0]
    assert any(node.op_type == "QLinearMatMul" for node in found[0][1].graph.node)
    assert dict(found[0][0].layers) == {
        "first.weight": "int8 grouped", "second.weight": "int8 grouped", "eye": "int8 dense", "head.weight": "fp32 dense",
    }  # fmt: skip


def test_trials_of_single_layers_propose_a_mixed_file(monkeypatch):
    layers = {
        "first.weight": {"fp32 grouped": 2.0, "int8 grouped": 1.0},
        "second.weight": {"fp32 grouped": 1.0, "int8 grouped": 2.0},
    }
    timed(monkeypatch, 5.0, 4.0, 3.0, 2.0, 1.0, layers=layers)
    (first, model), *_ = int8.quantize({"grouped": with_dense_layer()}, {"x": images(64)[0]})[0]
    assert first.name == "mixed, by layer"
    assert [first.layers[name] for name in ("first.weight", "second.weight", "eye")] == [
        "int8 grouped", "fp32 grouped", "fp32 dense",
    ]  # fmt: skip
    assert [node.op_type for node in model.graph.node].count("QLinearMatMul") == 1


def test_layers_that_are_faster_dense_in_int8_are_lowered_again_without_them(monkeypatch):
    layers = {"second.weight": {"fp32 grouped": 2.0, "int8 dense": 1.0}}
    timed(monkeypatch, *range(9), layers=layers)
    asked = []
    int8.quantize({"grouped": load(1)}, {"x": images(64)[0]}, lower=lambda kept: asked.append(kept) or load(1))
    assert asked == [("second.weight",)]


def samples(model, x, labels=None):
    return int8.Samples({"x": x}, {"x": x}, run(model, x, "logits")[0], labels)


def test_a_fast_form_that_disagrees_is_passed_over(monkeypatch):
    timed(monkeypatch, 5.0, 4.0, 3.0, 2.0)
    model, (x, _) = with_dense_layer(), images(64)
    monkeypatch.setattr(int8, "write_grouped_int8", lambda given, *_: broken(given))
    _, result = int8.int8_file({"grouped": model}, samples(model, x))
    assert result.chosen.name == "grouped, dense layers int8" and len(result.trials) == 4
    assert result.agreed > 0.95 * result.decisions and result.largest_error < 0.1
    assert result.head == "kept: no labels to fit it on" and not result.figures


def test_a_file_whose_fastest_form_is_fp32_keeps_its_head(monkeypatch):
    timed(monkeypatch, 1.0, 4.0, 3.0, 2.0)
    model, (x, y) = with_dense_layer(), images(64)
    _, result = int8.int8_file({"grouped": model}, samples(model, x, y))
    assert result.chosen.integers == 0 and result.head == "kept: the file computes in fp32"
    assert result.agreed == result.decisions == 64 and result.largest_error < 1e-6


def test_where_no_form_agrees_there_is_no_file(monkeypatch):
    timed(monkeypatch, 1.0, 4.0, 3.0, 2.0)
    model, (x, _) = with_dense_layer(), images(64)
    given = samples(model, x)
    with pytest.raises(ExportError, match="no form of the file agrees"):
        int8.int8_file({"grouped": model}, int8.Samples(given.calibration, given.held_out, -given.logits))


def broken(model):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for item in copy.graph.initializer:
        if item.name == "head.weight":
            item.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(item), item.name))
    return copy


def test_a_real_trial_measures_every_form_and_every_layer():
    found, layers = int8.quantize({"grouped": with_dense_layer()}, {"x": images(64)[0]}, batch=16)
    assert len(found) >= 4 and all(trial.milliseconds > 0 for trial, _ in found)
    assert [trial.milliseconds for trial, _ in found] == sorted(trial.milliseconds for trial, _ in found)
    assert {name: set(timed) for name, timed in layers.items()} == {
        "first.weight": {"fp32 grouped", "int8 grouped"}, "second.weight": {"fp32 grouped", "int8 grouped"},
    }  # fmt: skip
    assert all(value > 0 for timed in layers.values() for value in timed.values())


def test_the_temperature_is_fitted_to_the_integers_own_logits():
    model, (x, y) = load(1), images()
    held_out = int8.Samples({}, {"x": x[1200:]}, np.empty(0), y[1200:])
    text, figures = int8.refit_head(model, held_out)
    stored = [numpy_helper.to_array(i) for i in model.graph.initializer if i.name.endswith("temperature")]
    temperature = float(stored[0])
    assert abs(temperature - 1.5) > 1e-3 and text == f"temperature fitted again: 1.5000 before, {temperature:.4f} after"
    assert figures["nll_after"] < figures["nll_before"] and set(figures) == {
        "nll_before", "nll_after", "ece_before", "ece_after",
    }  # fmt: skip
    logits, probabilities = run(model, x[1200:], "logits", "probabilities")
    shifted = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
    assert np.allclose(probabilities, shifted / shifted.sum(1, keepdims=True), atol=1e-6)


def test_a_head_that_cannot_be_fitted_stays_and_says_why():
    model, (x, _) = load(1), images(64)
    right = run(model, x, "logits")[0].argmax(1)  # labels that the logits separate perfectly
    text, figures = int8.refit_head(model, int8.Samples({}, {"x": x}, np.empty(0), right))
    assert text.startswith("kept: the temperature is not identifiable") and set(figures) == {"nll_before", "ece_before"}
    stored = next(i for i in model.graph.initializer if i.name.endswith("temperature"))
    assert float(numpy_helper.to_array(stored)) == 1.5
    for item in model.graph.initializer:
        item.name = item.name.replace("calibration.", "")
    assert int8.refit_head(model, int8.Samples({}, {"x": x}, np.empty(0), right)) == (
        "none that can be fitted again",
        {},
    )


def test_large_tensors_are_thinned_but_keep_their_extremes():
    values = np.arange(300_000, dtype=np.float32)[::-1].reshape(3, -1)
    kept = int8._selected(values)
    assert kept.size <= int8.MOST_VALUES + 2 and (kept.min(), kept.max()) == (0, 299_999)
    assert int8._selected(values[:, :10]).shape == (3, 10)


def test_without_calibration_samples_there_is_no_int8():
    for given, batch in (({}, 1), ({"x": images(1)[0]}, 1), ({"x": images(4)[0]}, 9)):
        with pytest.raises(ExportError, match="at least 2 calibration samples"):
            int8.quantize({"grouped": load(1)}, given, batch=batch)
