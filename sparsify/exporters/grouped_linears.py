"""Grouped linear layers in an exported file, found again by their shape: a gather of rows, a product of small matrices, a bias, a ReLU."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from onnx import numpy_helper

from sparsify.exporters.skeleton import inferred
from sparsify.timing import Array


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
        self._model = model
        self.graph = model.graph
        self.producer = {name: node for node in model.graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in model.graph.output}
        self._initializers = {item.name: item for item in model.graph.initializer}

    @cached_property
    def sizes(self) -> dict[str, list[int | str | None]]:
        """Sizes by tensor, inferred when they are first asked for; an open size by its name, None where nothing is known of it."""
        graph = inferred(self._model)
        values = (*graph.value_info, *graph.input, *graph.output)
        return {v.name: [d.dim_value or d.dim_param or None for d in v.type.tensor_type.shape.dim] for v in values}

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
        sizes = self.sizes.get(name)
        return None if sizes is None else [size if isinstance(size, int) else None for size in sizes]

    def leaves(self, name: str) -> bool:
        """Whether a tensor is an output, or becomes one by changes of its shape alone."""
        turned = [node for node in self.readers.get(name, []) if node.op_type in ("Transpose", "Reshape", "Squeeze")]
        return name in self.outputs or any(self.leaves(node.output[0]) for node in turned)

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
    return GroupedLinear(
        tuple(nodes), source, result, weight, bias, index, chunk, rectified, weight_name(product.input[0])
    )


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
