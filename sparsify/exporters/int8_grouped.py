"""Quantizes grouped linear layers: `QLinearMatMul` on feature-major activations that stay uint8 between layers.

A grouped layer of an exported model computes ``Y = relu(W @ gather(X) + b)`` with W [G, O, K], X [F, M] and Y [G*O, M], for a batch of M
samples. A dense layer between grouped layers has the same form, with one group and no gather. ONNX Runtime's static quantizer leaves
these products in floating point, so this module writes the nodes. `QLinearMatMul` has no bias input. The bias is therefore encoded in
extra columns of W, which multiply constant rows appended to X. ReLU needs no node, because the output saturates at the zero point.

Weights are uint8 with zero point 128, multiplied by uint8 activations; no instruction set overflows on this product. With a reduced
range, weights have 7 bits with zero point 64 and are multiplied by int8 activations. Processors compute that product faster, and a sum of
two such products fits the 16-bit accumulators that some of them use.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsify.exporters.graphs import Writer, leaves, rewritten
from sparsify.exporters.grouped_linears import GroupedLinear, find_grouped_linears
from sparsify.timing import Array

BIAS_COLUMNS = 4
"""Minimum number of constant rows; more if chunks are longer. With a multiple of 4, int8 kernels process whole vectors."""
SHIFT = 128
"""Difference between the uint8 and the int8 form of an activation."""
CLIPS = np.linspace(0.4, 1.0, 25)
"""Fractions of the observed range that are tried as the range of an activation."""


@dataclass(frozen=True)
class Scale:
    """Scale and zero point of uint8 values: real = scale * (q - zero), q in [0, 255]."""

    scale: float
    zero: int

    def quantize(self, values: Array) -> Array:
        return np.clip(np.rint(values / self.scale) + self.zero, 0, 255).astype(np.uint8)

    def dequantize(self, values: Array) -> Array:
        return self.scale * (values.astype(np.float64) - self.zero)


def best_scale(values: Sequence[Array], *, rectified: bool) -> Scale:
    """Return the scale with the smallest squared error of rounding and clipping, among `CLIPS` of the observed range.

    Args:
        values: observed values, arrays of any shapes.
        rectified: clip negative values to 0, which sets the zero point to 0.
    """
    flat = np.concatenate([v.reshape(-1) for v in values]).astype(np.float64)
    low, high = (0.0 if rectified else min(float(flat.min()), 0.0)), max(float(flat.max()), 0.0)
    wanted = np.maximum(flat, 0.0) if rectified else flat
    best, error = Scale(max(high - low, 1e-8) / 255, 0), math.inf
    for clip in CLIPS:
        scale = max(clip * (high - low), 1e-8) / 255
        candidate = Scale(scale, round(-clip * low / scale))
        cost = float(np.square(candidate.dequantize(candidate.quantize(wanted)) - wanted).sum())
        if cost < error:
            best, error = candidate, cost
    return best


@dataclass(frozen=True)
class Quantized:
    """A quantized layer.

    Attributes:
        weight: uint8 [G, O, K'], bias columns included.
        zero: zero point of the weight.
        scale: scale of the weight.
        constant: value of the rows appended to the input.
        extra: number of chunks of appended rows.
    """

    weight: Array
    zero: int
    scale: float
    constant: int
    extra: int


def quantize_layer(layer: GroupedLinear, source: Scale, *, reduce_range: bool = False) -> Quantized:
    """Quantize the weight with zero point 128, or 64 for a reduced range, and encode the bias in extra columns of it.

    One unit of the integer sum is ``source.scale * scale``. The constant of the appended rows is the smallest that can express the largest
    bias. The rounding error of a bias is at most half of that constant, in these units.
    """
    zero = 64 if reduce_range else 128
    most = zero - 1
    scale = max(float(np.abs(layer.weight).max()), 1e-12) / most
    groups, rows, _ = layer.weight.shape
    weight = np.rint(layer.weight / scale).astype(np.int64)
    if layer.bias is None or not layer.bias.any():
        return Quantized((weight + zero).astype(np.uint8), zero, scale, 0, 0)
    bias = np.rint(layer.bias.astype(np.float64) / (source.scale * scale)).reshape(groups, rows)
    room = max(255 - source.zero, source.zero)
    columns = max(BIAS_COLUMNS, math.ceil(float(np.abs(bias).max()) / (most * room)))
    columns = math.ceil(columns / layer.chunk) * layer.chunk
    value = max(1, math.ceil(float(np.abs(bias).max()) / (most * columns)))
    value = value if value <= 255 - source.zero else -value
    share = np.rint(bias / value).astype(np.int64)
    spread = share // columns + (np.arange(columns)[:, None, None] < share % columns)
    weight = np.concatenate([weight, np.moveaxis(spread, 0, -1)], axis=-1)
    weight = (np.clip(weight, -zero, most) + zero).astype(np.uint8)
    return Quantized(weight, zero, scale, source.zero + value, columns // layer.chunk)


def write_grouped_int8(
    model: ir.Model,
    weights: Collection[str] | None,
    observed: Mapping[str, Sequence[Array]],
    *,
    exact: Collection[str] | None = None,
    reduce_range: bool = False,
) -> ir.Model:
    """Return a copy of ``model`` with its grouped layers quantized.

    Args:
        model: an exported model.
        weights: weight names of the layers to quantize; None: all of them.
        observed: values of each layer's input and result on calibration data, by tensor name.
        exact: names of results that are not rounded to 8 bits; None: those that are outputs of the model.
        reduce_range: use 7-bit weights and int8 activations; layers with exact results keep 8-bit weights and uint8 activations.
    """

    def write(graph: ir.Graph) -> bool:
        layers = [layer for layer in find_grouped_linears(graph) if weights is None or layer.name in weights]
        kept = exact
        if kept is None:
            kept = {str(layer.result.name) for layer in layers if leaves(layer.result)}
        integers = _Integers(graph, layers, observed, kept, signed=reduce_range)
        for layer in layers:
            integers.write(layer)
        return bool(layers)

    return rewritten(model, write)


class _Integers:
    """Replaces the layers of a graph in order by quantized ones, and reuses the integer result of one layer as the input of the next."""

    def __init__(
        self,
        graph: ir.Graph,
        layers: Sequence[GroupedLinear],
        observed: Mapping[str, Sequence[Array]],
        exact: Collection[str],
        *,
        signed: bool,
    ) -> None:
        self._graph, self._exact, self._signed = graph, exact, signed
        self._forms: dict[str, ir.Value] = {}
        results = {str(layer.result.name): layer for layer in layers}
        self._scales = {
            name: best_scale(observed[name], rectified=layer.rectified)
            for name, layer in results.items()
            if name not in exact
        }
        for name in (str(layer.source.name) for layer in layers):
            if name not in self._scales:
                self._scales[name] = best_scale(observed[name], rectified=False)

    def write(self, layer: GroupedLinear) -> None:
        write = Writer(layer.nodes[0], self._graph)
        exact = layer.result.name in self._exact
        write.replace(layer.result, (self._sums if exact else self._rounded)(write, layer))

    def _rounded(self, write: Writer, layer: GroupedLinear) -> ir.Value:
        result, scales = str(layer.result.name), self._scales
        given, made = scales[str(layer.source.name)], scales[result]
        whole = quantize_layer(layer, given, reduce_range=self._signed)
        groups, rows, _ = whole.weight.shape
        values = self._form(write, layer.source, signed=self._signed)
        data = _gather(write, layer, whole, values, signed=self._signed)
        weight = write.constant(f"{result}_weight", _plain(whole.weight))
        step = write.constant(f"{result}_weight_scale", np.array(whole.scale, np.float32))
        middle = write.constant(f"weight_zero_{whole.zero}", np.array(whole.zero, np.uint8))
        activations = (
            *_constants(write, str(layer.source.name), given, signed=self._signed),
            *_constants(write, result, made),
        )
        product = write.call(
            "QLinearMatMul",
            [weight, step, middle, data, *activations],
            f"{result}_product" if groups > 1 else f"{result}_integers",
        )
        if groups > 1:
            flat = write.constant(f"{result}_rows", np.array([groups * rows, -1], np.int64))
            product = write.call("Reshape", [product, flat], f"{result}_integers")
        self._forms[f"{result}_integers"] = product
        return write.call("DequantizeLinear", [product, *_constants(write, result, made)], f"{result}_values")

    def _sums(self, write: Writer, layer: GroupedLinear) -> ir.Value:
        """Write a layer whose result is exact: 32-bit integer sums, scaled to float, with a float bias, so that nothing is clipped."""
        result, source = str(layer.result.name), str(layer.source.name)
        given, (groups, rows, _) = self._scales[source], layer.weight.shape
        steps = np.maximum(np.abs(layer.weight).max(axis=2, keepdims=True), 1e-12) / 127
        weight = (np.rint(layer.weight / steps) + 128).astype(np.uint8)
        whole = Quantized(weight, 128, 0.0, 0, 0)
        data = _gather(write, layer, whole, self._form(write, layer.source))
        middle = write.constant(f"weight_zero_{whole.zero}", np.array(whole.zero, np.uint8))
        zero = _constants(write, source, given)[1]
        inputs = [write.constant(f"{result}_weight", _plain(weight)), data, middle, zero]
        sums = write.call("MatMulInteger", inputs, f"{result}_sums")
        if groups > 1:
            flat = write.constant(f"{result}_rows", np.array([groups * rows, -1], np.int64))
            sums = write.call("Reshape", [sums, flat], f"{result}_flat")
        value = write.call("Cast", [sums], f"{result}_float", to=ir.DataType.FLOAT.value)
        scale = write.constant(f"{result}_step", (given.scale * steps).reshape(-1, 1).astype(np.float32))
        value = write.call("Mul", [value, scale], f"{result}_scaled")
        if layer.bias is not None:
            bias = write.constant(f"{result}_bias", layer.bias.reshape(-1, 1).astype(np.float32))
            value = write.call("Add", [value, bias], f"{result}_sum")
        return write.call("Relu", [value], f"{result}_rectified") if layer.rectified else value

    def _form(self, write: Writer, value: ir.Value, *, signed: bool = False) -> ir.Value:
        """Return the uint8 or int8 form of a value. Quantizes before a transpose, not after it, so that the transpose moves less data."""
        name = str(value.name)
        form, plain = f"{name}_signed" if signed else f"{name}_integers", self._forms.get(f"{name}_integers")
        if form not in self._forms:
            scale, node = self._scales[name], value.producer()
            constants = _constants(write, name, scale, signed=signed)
            if plain is not None:
                # uint8 arithmetic and the cast are modulo 256, so the result is exactly the value minus 128
                shifted = write.call(
                    "Sub", [plain, write.constant("shift", np.array(SHIFT, np.uint8))], f"{name}_shifted"
                )
                made = write.call("Cast", [shifted], form, to=ir.DataType.INT8.value)
            elif node is None or node.op_type != "Transpose":
                made = write.call("QuantizeLinear", [value, *constants], form)
            else:
                early = write.call("QuantizeLinear", [_input(node), *constants], f"{form}_early")
                order: dict[str, Any] = {name: list(attribute.as_ints()) for name, attribute in node.attributes.items()}
                made = write.call("Transpose", [early], form, **order)
            self._forms[form] = made
        return self._forms[form]


def _input(node: ir.Node) -> ir.Value:
    found = node.inputs[0]
    assert found is not None
    return found


def _constants(write: Writer, name: str, scale: Scale, *, signed: bool = False) -> tuple[ir.Value, ir.Value]:
    """Write the scale and zero point of an activation as constants."""
    zero = np.array(scale.zero - SHIFT, np.int8) if signed else np.array(scale.zero, np.uint8)
    return (
        write.constant(f"{name}_scale", np.array(scale.scale, np.float32)),
        write.constant(f"{name}_zero{'_signed' if signed else ''}", zero),
    )


def _plain(values: Array) -> Array:
    """Drop the dimension for groups if there is only one: [O, K] instead of [1, O, K]."""
    return values if len(values) > 1 else values[0]


def _gather(write: Writer, layer: GroupedLinear, whole: Quantized, data: ir.Value, *, signed: bool = False) -> ir.Value:
    """Write the integer inputs of a layer, [G, K', M], or [K', M] for one group, including the constant rows for its bias."""
    groups, _, width = whole.weight.shape
    shape = layer.source.shape
    assert shape is not None
    count, chunk, index, result = int(shape[0]), layer.chunk, layer.index, layer.result.name  # type: ignore[arg-type]
    if whole.extra:
        pads = write.constant(f"{result}_pads", np.array([0, 0, whole.extra * chunk, 0], np.int64))
        constant = np.array(whole.constant - SHIFT, np.int8) if signed else np.array(whole.constant, np.uint8)
        data = write.call("Pad", [data, pads, write.constant(f"{result}_fill", constant)], f"{result}_padded")
        if index is not None:
            ones = np.arange(count // chunk, count // chunk + whole.extra)
            index = np.concatenate([index, np.broadcast_to(ones, (groups, whole.extra))], axis=1)
    if chunk > 1:
        sizes = write.constant(f"{result}_chunks", np.array([count // chunk + whole.extra, -1], np.int64))
        data = write.call("Reshape", [data, sizes], f"{result}_chunked")
    if index is not None:
        if (
            chunk == 1
        ):  # shapes are not inferred through integer operators, and `single_samples` needs the batch dimension
            data.type = ir.TensorType(ir.DataType.INT8 if signed else ir.DataType.UINT8)
            data.shape = ir.Shape([count + whole.extra, shape[1]])
        places = write.constant(f"{result}_index", _plain(index).astype(np.int64))
        data = write.call("Gather", [data, places], f"{result}_gathered", axis=0)
    if chunk > 1:
        sizes = write.constant(
            f"{result}_groups", np.array((groups, width, -1) if groups > 1 else (width, -1), np.int64)
        )
        data = write.call("Reshape", [data, sizes], f"{result}_inputs")
    return data
