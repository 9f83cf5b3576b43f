"""int8 for grouped linear layers: `QLinearMatMul` on feature-major activations that stay uint8 from layer to layer.

A grouped layer of an exported file is ``Y = relu(W @ gather(X) + b)`` with W [G, O, K], X [F, M] and Y [G*O, M], M columns of a batch.
So are, with one group and nothing to gather, dense layers between grouped ones. The stock quantizer leaves such products in floating
point, so their nodes are written here. `QLinearMatMul` has no bias: the bias becomes a few more columns of W that read rows of a
constant, by which X is padded. ReLU is what saturation at the zero point does.

Weights are uint8 around 128 and meet activations in uint8, which no instruction set overflows on. With a reduced range, 7 bits around
64, they meet activations in int8: a product that processors compute faster, and whose sums of two still fit the 16 bits of some.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sparsify.exporters.grouped_linears import GroupedLinear, View
from sparsify.timing import Array

BIAS_COLUMNS = 4
"""Constant rows at least; more where inputs come in longer chunks. A multiple of 4 keeps int8 kernels on whole vectors."""
SHIFT = 128
"""An int8 activation is the uint8 one less this."""
CLIPS = np.linspace(0.4, 1.0, 25)
"""Fractions of the observed range that are tried for the range of an activation."""


@dataclass(frozen=True)
class Scale:
    """real = scale * (q - zero), q in [0, 255]."""

    scale: float
    zero: int

    def quantize(self, values: Array) -> Array:
        return np.clip(np.rint(values / self.scale) + self.zero, 0, 255).astype(np.uint8)

    def dequantize(self, values: Array) -> Array:
        return self.scale * (values.astype(np.float64) - self.zero)


def best_scale(values: Sequence[Array], *, rectified: bool) -> Scale:
    """The range, as a fraction of the one observed, whose rounding and clipping cost least in squares.

    Args:
        values: observed, any shapes.
        rectified: whether negative values may be clipped away: the zero point is then 0.
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
    """Integers of a layer: weight [G, O, K'] uint8 around ``zero``, its scale, the constant behind X, and chunks of it read."""

    weight: Array
    zero: int
    scale: float
    constant: int
    extra: int


def quantize_layer(layer: GroupedLinear, source: Scale, *, reduce_range: bool = False) -> Quantized:
    """Weights as uint8 around 128, of a reduced range around 64; the bias as ``extra`` more columns that read rows of ``constant``.

    One unit of the sum is source.scale * scale. The smallest constant that can express the largest bias is taken, so that the bias is
    off by at most half of it.
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


class Writer:
    """New nodes and constants, with names of their own."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.values: list[onnx.ValueInfoProto] = []

    def constant(self, name: str, value: Array) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def call(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=f"{output}_node", **attributes))
        return output

    def scale(self, name: str, scale: Scale, *, signed: bool = False) -> tuple[str, str]:
        """Constants of an activation's scale and zero point."""
        zero = np.int8(scale.zero - SHIFT) if signed else np.uint8(scale.zero)
        return (
            self.constant(f"{name}_scale", np.float32(scale.scale)),  # type: ignore[arg-type]
            self.constant(f"{name}_zero{'_signed' if signed else ''}", zero),  # type: ignore[arg-type]
        )


def write_grouped_int8(
    model: onnx.ModelProto,
    layers: Sequence[GroupedLinear],
    observed: Mapping[str, Sequence[Array]],
    *,
    exact: Collection[str] | None = None,
    reduce_range: bool = False,
) -> onnx.ModelProto:
    """A copy of ``model`` whose ``layers`` compute in integers.

    Args:
        model: as exported.
        layers: from `find_grouped_linears` of this model.
        observed: values of every source and result on calibration data.
        exact: results that are not rounded to 8 bits; None: those that leave the file.
        reduce_range: 7 bits of weight against activations in int8; layers whose results are exact keep 8 and uint8.
    """
    view, by_result = View(model), {layer.result: layer for layer in layers}
    if exact is None:
        exact = {layer.result for layer in layers if view.leaves(layer.result)}
    scales = {
        layer.result: best_scale(observed[layer.result], rectified=layer.rectified)
        for layer in layers
        if layer.result not in exact
    }
    for layer in layers:
        if layer.source not in scales:
            scales[layer.source] = best_scale(observed[layer.source], rectified=False)
    replaced = {id(node) for layer in layers for node in layer.nodes}
    kept = {id(layer.nodes[-1]): layer for layer in layers}
    writer, integers = Writer(), set[str]()
    for node in model.graph.node:
        if id(node) not in replaced:
            writer.nodes.append(node)
        layer = kept.get(id(node))
        if layer is not None and layer.result in exact:
            _write_exact(writer, view, layer, scales, integers)
        elif layer is not None:
            _write(writer, view, layer, scales, integers, by_result, reduce_range)
    nodes = _live(writer.nodes, {value.name for value in model.graph.output})
    read = {name for node in nodes for name in node.input}
    constants = [*model.graph.initializer, *writer.constants.values()]
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(item for item in constants if item.name in read)
    result.graph.value_info.extend(writer.values)
    return result


def _live(nodes: Sequence[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    """The nodes something reads, in order."""
    wanted, live = set(wanted), list[onnx.NodeProto]()
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            live.insert(0, node)
    return live


def _write(
    writer: Writer,
    view: View,
    layer: GroupedLinear,
    scales: Mapping[str, Scale],
    integers: set[str],
    by_result: Mapping[str, GroupedLinear],
    reduce_range: bool,
) -> None:
    source, result = layer.source, layer.result
    given, made = scales[source], scales[result]
    whole = quantize_layer(layer, given, reduce_range=reduce_range)
    groups, rows, _ = whole.weight.shape
    values = _as_integers(writer, view, source, given, integers, signed=reduce_range)
    data = _gather(writer, view, layer, whole, values, signed=reduce_range)
    weight = writer.constant(f"{result}_weight", _plain(whole.weight))
    step = writer.constant(f"{result}_weight_scale", np.float32(whole.scale))  # type: ignore[arg-type]
    middle = writer.constant(f"weight_zero_{whole.zero}", np.uint8(whole.zero))  # type: ignore[arg-type]
    activations = *writer.scale(source, given, signed=reduce_range), *writer.scale(result, made)
    product = writer.call(
        "QLinearMatMul",
        [weight, step, middle, data, *activations],
        f"{result}_product" if groups > 1 else f"{result}_integers",
    )
    if groups > 1:
        flat = writer.constant(f"{result}_rows", np.array([groups * rows, -1], np.int64))
        writer.call("Reshape", [product, flat], f"{result}_integers")
    integers.add(f"{result}_integers")
    readers = [
        node for node in view.readers.get(result, []) if not any(node is n for x in by_result.values() for n in x.nodes)
    ]
    if readers or result in view.outputs:
        writer.call("DequantizeLinear", [f"{result}_integers", *writer.scale(result, made)], result)


def _write_exact(
    writer: Writer, view: View, layer: GroupedLinear, scales: Mapping[str, Scale], integers: set[str]
) -> None:
    """A layer whose result leaves the file: sums are not rounded to 8 bits, the bias is added to them as it is, and outputs do not clip."""
    source, result = layer.source, layer.result
    given, (groups, rows, _) = scales[source], layer.weight.shape
    steps = np.maximum(np.abs(layer.weight).max(axis=2, keepdims=True), 1e-12) / 127
    weight = (np.rint(layer.weight / steps) + 128).astype(np.uint8)
    whole = Quantized(weight, 128, 0.0, 0, 0)
    data = _gather(writer, view, layer, whole, _as_integers(writer, view, source, given, integers))
    middle = writer.constant(f"weight_zero_{whole.zero}", np.uint8(whole.zero))  # type: ignore[arg-type]
    inputs = [writer.constant(f"{result}_weight", _plain(weight)), data, middle, writer.scale(source, given)[1]]
    sums = writer.call("MatMulInteger", inputs, f"{result}_sums")
    if groups > 1:
        flat = writer.constant(f"{result}_rows", np.array([groups * rows, -1], np.int64))
        sums = writer.call("Reshape", [sums, flat], f"{result}_flat")
    value = writer.call("Cast", [sums], f"{result}_float", to=onnx.TensorProto.FLOAT)
    scale = writer.constant(f"{result}_step", (given.scale * steps).reshape(-1, 1).astype(np.float32))
    last = layer.bias is None and not layer.rectified
    value = writer.call("Mul", [value, scale], result if last else f"{result}_scaled")
    if layer.bias is not None:
        bias = writer.constant(f"{result}_bias", layer.bias.reshape(-1, 1).astype(np.float32))
        value = writer.call("Add", [value, bias], f"{result}_sum" if layer.rectified else result)
    if layer.rectified:
        writer.call("Relu", [value], result)


def _plain(values: Array) -> Array:
    """Of one group without the dimension for groups: [O, K] in place of [G, O, K]."""
    return values if len(values) > 1 else values[0]


def _gather(
    writer: Writer, view: View, layer: GroupedLinear, whole: Quantized, data: str, *, signed: bool = False
) -> str:
    """The integers [G, K', M] a layer reads, of one group [K', M], constants for its bias among them."""
    groups, _, width = whole.weight.shape
    count, chunk, index = (view.shape(layer.source) or [0])[0] or 0, layer.chunk, layer.index
    result = layer.result
    if whole.extra:
        pads = writer.constant(f"{result}_pads", np.array([0, 0, whole.extra * chunk, 0], np.int64))
        constant = np.int8(whole.constant - SHIFT) if signed else np.uint8(whole.constant)
        fill = writer.constant(f"{result}_fill", constant)  # type: ignore[arg-type]
        data = writer.call("Pad", [data, pads, fill], f"{result}_padded")
        if index is not None:
            ones = np.arange(count // chunk, count // chunk + whole.extra)
            index = np.concatenate([index, np.broadcast_to(ones, (groups, whole.extra))], axis=1)
    if chunk > 1:
        shape = writer.constant(f"{result}_chunks", np.array([count // chunk + whole.extra, -1], np.int64))
        data = writer.call("Reshape", [data, shape], f"{result}_chunked")
    if index is not None:
        if chunk == 1:  # shapes are not inferred through integer operators; `single_samples` looks for the batch
            shape = [count + whole.extra, (view.sizes.get(layer.source) or [None])[-1]]
            kind = onnx.TensorProto.INT8 if signed else onnx.TensorProto.UINT8
            writer.values.append(helper.make_tensor_value_info(data, kind, shape))
        places = writer.constant(f"{result}_index", _plain(index).astype(np.int64))
        data = writer.call("Gather", [data, places], f"{result}_gathered", axis=0)
    if chunk > 1:
        sizes = (groups, width, -1) if groups > 1 else (width, -1)
        shape = writer.constant(f"{result}_groups", np.array(sizes, np.int64))
        data = writer.call("Reshape", [data, shape], f"{result}_inputs")
    return data


def _as_integers(
    writer: Writer, view: View, name: str, scale: Scale, integers: set[str], *, signed: bool = False
) -> str:
    """The uint8 or int8 form of a tensor; quantized before a transpose rather than behind it, where there is less to move."""
    form = f"{name}_signed" if signed else f"{name}_integers"
    if form in integers:
        return form
    integers.add(form)
    if f"{name}_integers" in integers and signed:
        # uint8 arithmetic is modulo 256, and so is the cast: exactly the number less 128.
        shift = writer.constant("shift", np.uint8(SHIFT))  # type: ignore[arg-type]
        shifted = writer.call("Sub", [f"{name}_integers", shift], f"{name}_shifted")
        return writer.call("Cast", [shifted], form, to=onnx.TensorProto.INT8)
    node = view.producer.get(name)
    constants = writer.scale(name, scale, signed=signed)
    if node is None or node.op_type != "Transpose":
        return writer.call("QuantizeLinear", [name, *constants], form)
    early = writer.call("QuantizeLinear", [node.input[0], *constants], f"{form}_early")
    perm = [list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"]
    return writer.call("Transpose", [early], form, **({"perm": perm[0]} if perm else {}))
