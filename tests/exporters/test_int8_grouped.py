"""Grouped layers in integers: worked by hand, against a slow oracle, and on digits."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsify.exporters import int8_forms
from sparsify.exporters.graphs import watched
from sparsify.exporters.grouped_linears import GroupedLinear, find_grouped_linears
from sparsify.exporters.int8_grouped import Scale, best_scale, quantize_layer, write_grouped_int8
from tests.exporters.grouped_mlp import grouped_int8, images, in_batches, kinds, load, run


def layer(weight, bias=None, *, chunk=1):
    weight = np.array(weight, np.float32)
    index = np.zeros((len(weight), weight.shape[2] // chunk), np.int64)
    return GroupedLinear(
        nodes=(), entry=None, result=None, matrix=None, table=None, weight=weight,
        bias=None if bias is None else np.array(bias, np.float32), index=index, chunk=chunk, rectified=True,
    )  # fmt: skip


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
    assert whole.zero == 128
    assert (whole.weight.astype(int) - 128).tolist() == [[[127, -50, 5, 5, 5, 5], [0, 2, -1, -1, -1, -1]]]


def test_weights_and_bias_of_a_reduced_range_by_hand():
    # Scale 1.26 / 63 = 0.02. The unit of the sum is 0.5 * 0.02: bias 0.1 and -0.02 are 10 and -2 units of four constants of 1.
    whole = quantize_layer(layer([[[1.26, -0.5], [0.0, 0.02]]], [0.1, -0.02]), Scale(0.5, 0), reduce_range=True)
    assert whole.scale == pytest.approx(0.02)
    assert (whole.zero, whole.constant, whole.extra) == (64, 1, 4)
    assert (whole.weight.astype(int) - 64).tolist() == [[[63, -25, 3, 3, 2, 2], [0, 1, 0, 0, -1, -1]]]


@pytest.mark.parametrize("size", [1e-4, 1.0, 300.0])
def test_sums_of_two_products_of_a_reduced_range_fit_16_bits(size):
    """Where a processor adds two products in 16 bits before it widens them: uint8 weights, int8 activations."""
    rng = np.random.default_rng(0)
    whole = quantize_layer(
        layer(rng.normal(size=(2, 12, 16)), rng.normal(scale=size, size=24)), Scale(0.02, 100), reduce_range=True
    )
    most = int(whole.weight.max())
    assert most <= 127 and 2 * most * -128 >= -(2**15) and 2 * most * 127 < 2**15


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


@pytest.mark.parametrize("reduce_range", [False, True])
@pytest.mark.parametrize("chunk", [1, 4])
def test_the_file_computes_what_a_loop_over_integers_gives(chunk, reduce_range):
    model, (x, _) = load(chunk), images(40)
    layers = find_grouped_linears(model.graph)
    names = [name for part in layers for name in (part.source.name, part.result.name)]
    seen = int8_forms.observe(model, names, in_batches(x))
    written = write_grouped_int8(model, None, seen, reduce_range=reduce_range)
    onnx.checker.check_model(ir.to_proto(written))
    first = f"{layers[0].source.name}_{'signed' if reduce_range else 'integers'}"
    stages = [first, *(f"{part.result.name}_integers" for part in layers[:2])]
    stages += [f"{layers[0].result.name}_signed"] * reduce_range
    found = [values.astype(np.int64) for values in run(written, x, *stages)]
    if reduce_range:
        assert (
            np.array_equal(found.pop(), found[1] - 128) and len(np.unique(found[1])) > 200
        )  # both halves of the range
        found[0] += 128
    source = best_scale(seen[layers[0].source.name], rectified=False)
    given = source.quantize(np.concatenate(seen[layers[0].source.name], axis=1))
    assert np.abs(found[0] - given).max() <= 1  # pixels are multiples of 1/16: many lie halfway
    for part, values, have in zip(layers, found[:-1], found[1:], strict=True):
        made = best_scale(seen[part.result.name], rectified=True)
        whole = quantize_layer(part, source, reduce_range=reduce_range)
        want = np.empty_like(have)
        for row in range(len(want)):
            group, place = divmod(row, part.weight.shape[1])
            read = (part.index[group][:, None] * part.chunk + np.arange(part.chunk)).reshape(-1)
            constant = np.full((whole.extra * part.chunk, values.shape[1]), whole.constant)
            sums = (whole.weight[group, place].astype(int) - whole.zero) @ (
                np.concatenate([values[read], constant]) - source.zero
            )
            want[row] = np.clip(np.rint(sums * (source.scale * whole.scale / made.scale)), 0, 255)
        assert np.abs(have - want).max() <= 1 and (have != want).mean() < 0.001  # the runtime rounds in float32
        source = made


@pytest.mark.parametrize("reduce_range", [False, True])
@pytest.mark.parametrize("chunk", [1, 4])
def test_digits_survive_and_activations_stay_integers(chunk, reduce_range):
    model, (x, y) = load(chunk), images()
    written = grouped_int8(model, in_batches(x[:200]), reduce_range=reduce_range)
    found = kinds(written)
    assert found.count("QLinearMatMul") == 2
    assert found.count("QuantizeLinear") == found.count("DequantizeLinear") == 1
    assert "MatMul" not in found and {node.domain for node in written.graph} == {""}
    before, after = (run(m, x[1200:], "logits")[0].argmax(1) for m in (model, written))
    assert (before == after).mean() > 0.98
    assert abs((after == y[1200:]).mean() - (before == y[1200:]).mean()) < 0.02


def test_a_network_whose_hidden_values_leave_the_file_keeps_them():
    model, (x, _) = load(1), images(64)
    hidden = find_grouped_linears(model.graph)[0].result.name
    model = watched(model, [hidden])
    written = grouped_int8(model, in_batches(x))
    want, have = run(model, x, hidden)[0], run(written, x, hidden)[0]
    assert np.abs(want - have).max() < 0.03 * np.abs(want).max()


def test_a_layer_whose_result_leaves_the_file_is_not_rounded_to_8_bits():
    model, (x, _) = load(1), images(64)
    first = find_grouped_linears(model.graph)[0]
    alone = ir.Model(ir.convenience.extract(model.graph, ["x"], [first.result.name]), ir_version=model.ir_version)
    written = grouped_int8(alone, in_batches(x))
    found = kinds(written)
    assert found.count("MatMulInteger") == 1 and not {"QLinearMatMul", "DequantizeLinear"} & set(found)
    want, have = run(alone, x)[0], run(written, x)[0]
    assert np.abs(want - have).max() < 0.01 * np.abs(want).max()
    assert len(np.unique(have)) > 256
