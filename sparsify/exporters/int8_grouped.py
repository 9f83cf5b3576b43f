"""int8 for grouped linear layers: `QLinearMatMul` on feature-major activations that stay uint8 from layer to layer.

A grouped layer of an exported file is ``Y = relu(W @ gather(X) + b)`` with W [G, O, K], X [F, M] and Y [G*O, M], M columns of a batch.
So are, with one group and nothing to gather, dense layers between grouped ones. The stock quantizer leaves such products in floating
point, so their nodes are written here. Weights are uint8 around 128, which no instruction set overflows on. `QLinearMatMul` has no bias:
the bias becomes a few more columns of W that read rows of a constant, by which X is padded. ReLU is what saturation at the zero point does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

BIAS_COLUMNS = 4
"""Constant rows at least; more where inputs come in longer chunks. A multiple of 4 keeps int8 kernels on whole vectors."""
CLIPS = np.linspace(0.4, 1.0, 25)
"""Fractions of the observed range that are tried for the range of an activation."""
Array = np.ndarray


@dataclass(frozen=True)
class Scale:
    """real = scale * (q - zero), q in [0, 255]."""

    scale: float
    zero: int

    def quantize(self, values: Array) -> Array:
        return np.clip(np.rint(values / self.scale) + self.zero, 0, 255).astype(np.uint8)

    def dequantize(self, values: Array) -> Array:
        return self.scale * (values.astype(np.float64) - self.zero)


@dataclass(frozen=True)
class GroupedLinear:
    """A grouped layer found in a graph.

    Attributes:
        nodes: its nodes, in order; what lies between the source and the result.
        source, result: tensors X [F, M] and Y [G*O, M].
        weight: [G, O, K], float.
        bias: [G*O] or None.
        index: [G, K / chunk]; the chunks of X each group reads; None: one group reads all.
        chunk: consecutive rows of X that are read together.
        rectified: whether the layer ends in ReLU.
        name: of the weight.
    """

    nodes: tuple[onnx.NodeProto, ...]
    source: str
    result: str
    weight: Array
    bias: Array | None
    index: Array | None
    chunk: int
    rectified: bool
    name: str = ""


def weight_name(initializer: str) -> str:
    """The program's name of an initializer."""
    return initializer.removeprefix("phase.")


class View:
    """Producers, readers, constants and shapes of a graph, by tensor name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = onnx.shape_inference.infer_shapes(model).graph
        self.graph = model.graph
        self.producer = {name: node for node in model.graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in model.graph.output}
        self._initializers = {item.name: item for item in model.graph.initializer}
        values = [*graph.value_info, *graph.input, *graph.output]
        self._shapes = {v.name: [d.dim_value or None for d in v.type.tensor_type.shape.dim] for v in values}

    def constant(self, name: str) -> Array | None:
        """A constant, looked up through nodes that only add dimensions of size 1."""
        node = self.producer.get(name)
        if node is not None and node.op_type == "Unsqueeze":
            value, axes = self.constant(node.input[0]), self.constant(node.input[1])
            return None if value is None or axes is None else np.expand_dims(value, tuple(axes.tolist()))
        item = self._initializers.get(name)
        return None if item is None else numpy_helper.to_array(item)

    def shape(self, name: str) -> list[int | None] | None:
        """Sizes of a tensor; None in place of one that is not fixed, or of the whole where nothing is known."""
        return self._shapes.get(name)

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        """The node that alone reads a tensor, or None."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None


def find_grouped_linears(model: onnx.ModelProto) -> tuple[GroupedLinear, ...]:
    """The grouped layers of a file, in graph order."""
    view = View(model)
    found = (_match(view, node) for node in model.graph.node if node.op_type == "MatMul")
    return tuple(layer for layer in found if layer is not None)


def _match(view: View, product: onnx.NodeProto) -> GroupedLinear | None:
    weight = view.constant(product.input[0])
    if weight is None or weight.ndim not in (2, 3) or weight.dtype != np.float32:
        return None
    gathered = _gathered(view, product.input[1], weight if weight.ndim == 3 else weight[None])
    if gathered is None:
        return None
    weight = weight if weight.ndim == 3 else weight[None]
    before, source, index, chunk = gathered
    nodes, bias, rectified = [*before, product], None, False
    result, rows = product.output[0], weight.shape[0] * weight.shape[1]
    while (reader := view.only_reader(result)) is not None and not rectified:
        if reader.op_type == "Add" and bias is None:
            other = view.constant(next(name for name in reader.input if name != result))
            if other is None or other.size != rows or other.shape[-1:] != (1,):
                break
            bias = other.reshape(-1)
        elif reader.op_type == "Relu":
            rectified = True
        elif reader.op_type != "Reshape" or (view.shape(reader.output[0]) or [])[:1] != [rows]:
            break
        nodes.append(reader)
        result = reader.output[0]
    shape = view.shape(result)
    if shape is None or len(shape) != 2 or shape[0] != rows:
        return None
    return GroupedLinear(tuple(nodes), source, result, weight, bias, index, chunk, rectified, weight_name(product.input[0]))


def _gathered(view: View, name: str, weight: Array) -> tuple[list[onnx.NodeProto], str, Array | None, int] | None:
    """Nodes, source, index and chunk of a gather along the first axis that makes [G, K, M]; no nodes where X itself is read."""
    groups, _, width = weight.shape
    nodes: list[onnx.NodeProto] = []
    node, data = view.producer.get(name), name
    while node is not None and node.op_type == "Reshape" and view.only_reader(data) is not None:
        nodes.insert(0, node)
        data = node.input[0]
        node = view.producer.get(data)
    if node is None or node.op_type != "Gather" or _axis(node) != 0 or view.constant(node.input[1]) is None:
        return ([], name, None, 1) if groups == 1 and _fixed(view, name) == [width, None] else None
    index = view.constant(node.input[1])
    if view.only_reader(data) is None or index is None:
        return None
    nodes.insert(0, node)
    source, chunk, given = node.input[0], 1, _fixed(view, node.input[0])
    split = view.producer.get(source)
    if split is not None and split.op_type == "Reshape" and given:
        # [F, M] read in chunks: as [F / chunk, chunk, M] or [F / chunk, chunk * M].
        whole = _fixed(view, split.input[0])
        if len(whole) == 2 and whole[0] and given[0] and whole[0] > given[0]:
            if view.only_reader(source) is not None:
                nodes.insert(0, split)
            source, chunk, given = split.input[0], whole[0] // given[0], whole
    if len(given) != 2 or not given[0] or index.size * chunk != groups * width:
        return None
    return nodes, source, index.reshape(groups, width // chunk), chunk


def _fixed(view: View, name: str) -> list[int | None]:
    return view.shape(name) or []


def _axis(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)


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
    """Integers of a layer: weight [G, O, K'] uint8 around 128, its scale, the constant behind X, and chunks of it read."""

    weight: Array
    scale: float
    constant: int
    extra: int


def quantize_layer(layer: GroupedLinear, source: Scale) -> Quantized:
    """Weights as uint8, the bias as ``extra`` more columns that read rows of ``constant``.

    One unit of the sum is source.scale * scale. The smallest constant that can express the largest bias is taken, so that the bias is
    off by at most half of it.
    """
    scale = max(float(np.abs(layer.weight).max()), 1e-12) / 127
    groups, rows, _ = layer.weight.shape
    weight = np.rint(layer.weight / scale).astype(np.int64)
    if layer.bias is None or not layer.bias.any():
        return Quantized((weight + 128).astype(np.uint8), scale, 0, 0)
    bias = np.rint(layer.bias.astype(np.float64) / (source.scale * scale)).reshape(groups, rows)
    room = max(255 - source.zero, source.zero)
    columns = max(BIAS_COLUMNS, math.ceil(float(np.abs(bias).max()) / (127 * room)))
    columns = math.ceil(columns / layer.chunk) * layer.chunk
    value = max(1, math.ceil(float(np.abs(bias).max()) / (127 * columns)))
    value = value if value <= 255 - source.zero else -value
    share = np.rint(bias / value).astype(np.int64)
    spread = share // columns + (np.arange(columns)[:, None, None] < share % columns)
    weight = np.concatenate([weight, np.moveaxis(spread, 0, -1)], axis=-1)
    return Quantized(
        (np.clip(weight, -128, 127) + 128).astype(np.uint8), scale, source.zero + value, columns // layer.chunk
    )


class Writer:
    """New nodes and constants, with names of their own."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: Array) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def call(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=f"{output}_node", **attributes))
        return output

    def scale(self, name: str, scale: Scale) -> tuple[str, str]:
        """Constants of an activation's scale and zero point."""
        return (
            self.constant(f"{name}_scale", np.float32(scale.scale)),  # type: ignore[arg-type]
            self.constant(f"{name}_zero", np.uint8(scale.zero)),  # type: ignore[arg-type]
        )


def write_grouped_int8(
    model: onnx.ModelProto, layers: Sequence[GroupedLinear], observed: Mapping[str, Sequence[Array]]
) -> onnx.ModelProto:
    """A copy of ``model`` whose ``layers`` compute in integers.

    Args:
        model: as exported.
        layers: from `find_grouped_linears` of this model.
        observed: values of every source and result on calibration data.
    """
    by_result = {layer.result: layer for layer in layers}
    scales = {layer.result: best_scale(observed[layer.result], rectified=layer.rectified) for layer in layers}
    for layer in layers:
        if layer.source not in scales:
            scales[layer.source] = best_scale(observed[layer.source], rectified=False)
    view, replaced = View(model), {id(node) for layer in layers for node in layer.nodes}
    kept = {id(layer.nodes[-1]): layer for layer in layers}
    writer, integers = Writer(), set[str]()
    for node in model.graph.node:
        if id(node) not in replaced:
            writer.nodes.append(node)
        if id(node) in kept:
            _write(writer, view, kept[id(node)], scales, integers, by_result)
    nodes = _live(writer.nodes, {value.name for value in model.graph.output})
    read = {name for node in nodes for name in node.input}
    constants = [*model.graph.initializer, *writer.constants.values()]
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(item for item in constants if item.name in read)
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
) -> None:
    source, result = layer.source, layer.result
    given, made = scales[source], scales[result]
    data = _as_integers(writer, view, source, given, integers)
    whole = quantize_layer(layer, given)
    groups, rows, width = whole.weight.shape
    count, chunk = (view.shape(source) or [0])[0] or 0, layer.chunk
    index = layer.index
    if whole.extra:
        pads = writer.constant(f"{result}_pads", np.array([0, 0, whole.extra * chunk, 0], np.int64))
        fill = writer.constant(f"{result}_fill", np.uint8(whole.constant))  # type: ignore[arg-type]
        data = writer.call("Pad", [data, pads, fill], f"{result}_padded")
        if index is not None:
            ones = np.arange(count // chunk, count // chunk + whole.extra)
            index = np.concatenate([index, np.broadcast_to(ones, (groups, whole.extra))], axis=1)
    if chunk > 1:
        shape = writer.constant(f"{result}_chunks", np.array([count // chunk + whole.extra, -1], np.int64))
        data = writer.call("Reshape", [data, shape], f"{result}_chunked")
    if index is not None:
        places = writer.constant(f"{result}_index", index.astype(np.int64))
        data = writer.call("Gather", [data, places], f"{result}_gathered", axis=0)
    if chunk > 1 or index is None:
        shape = writer.constant(f"{result}_groups", np.array([groups, width, -1], np.int64))
        data = writer.call("Reshape", [data, shape], f"{result}_inputs")
    weight = writer.constant(f"{result}_weight", whole.weight)
    step = writer.constant(f"{result}_weight_scale", np.float32(whole.scale))  # type: ignore[arg-type]
    middle = writer.constant("weight_zero", np.uint8(128))  # type: ignore[arg-type]
    product = writer.call(
        "QLinearMatMul",
        [weight, step, middle, data, *writer.scale(source, given), *writer.scale(result, made)],
        f"{result}_product",
    )
    flat = writer.constant(f"{result}_rows", np.array([groups * rows, -1], np.int64))
    writer.call("Reshape", [product, flat], f"{result}_integers")
    integers.add(result)
    readers = [
        node for node in view.readers.get(result, []) if not any(node is n for x in by_result.values() for n in x.nodes)
    ]
    if readers or result in view.outputs:
        writer.call("DequantizeLinear", [f"{result}_integers", *writer.scale(result, made)], result)


def _as_integers(writer: Writer, view: View, name: str, scale: Scale, integers: set[str]) -> str:
    """The uint8 form of a tensor; quantized before a transpose rather than behind it, where there is less to move."""
    if name not in integers:
        integers.add(name)
        node = view.producer.get(name)
        constants = writer.scale(name, scale)
        if node is not None and node.op_type == "Transpose":
            early = writer.call("QuantizeLinear", [node.input[0], *constants], f"{name}_early")
            perm = [list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"]
            writer.call("Transpose", [early], f"{name}_integers", **({"perm": perm[0]} if perm else {}))
        else:
            writer.call("QuantizeLinear", [name, *constants], f"{name}_integers")
    return f"{name}_integers"
