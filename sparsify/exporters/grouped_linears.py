"""Grouped linear layers in an exported file: how they are written in standard operators, and what they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from sparsify.exporters.graphs import constant, only_reader
from sparsify.timing import Array

MARK = "sparsify.grouped_linear"
"""Metadata of the nodes of a layer, until the file is written: a number for the layer, and its chunk."""


@dataclass(frozen=True)
class GroupedLinear:
    """A grouped layer found in a graph.

    Attributes:
        nodes: its nodes, in order; what lies between the source and the result.
        entry: which of them reads X [F, M], and at which input.
        result: Y [G*O, M].
        matrix, table: the constants of the weight and of the index.
        weight: [G, O, K], float.
        bias: [G*O] or None.
        index: [G, K / chunk]; the chunks of X each group reads; None: one group reads all.
        chunk: consecutive rows of X that are read together.
        rectified: whether the layer ends in ReLU.
    """

    nodes: tuple[ir.Node, ...]
    entry: tuple[ir.Node, int]
    result: ir.Value
    matrix: ir.Value
    table: ir.Value | None
    weight: Array
    bias: Array | None
    index: Array | None
    chunk: int
    rectified: bool

    @property
    def source(self) -> ir.Value:
        """X, as the graph is now."""
        found = self.entry[0].inputs[self.entry[1]]
        assert found is not None
        return found

    @property
    def name(self) -> str:
        """Of its weight in the program."""
        return weight_name(str(self.matrix.name))


def weight_name(initializer: str) -> str:
    """The program's name of an initializer."""
    return initializer.removeprefix("phase.")


def translate(values: Any, weight: Any, inputs: Any, bias: Any, chunk: int, *, mark: str = "") -> Any:
    """`sparsify.ir.grouped_linear` in standard operators, called by torch.onnx; each carries a mark by which the layer is found."""
    from onnxscript import opset18  # here, because it takes a second to import

    op: Any = opset18
    *groups, rows, kept = weight.shape

    def call(kind: str, *given: Any, **attributes: Any) -> Any:
        lists = (op.Constant(value_ints=x) if isinstance(x, list) else x for x in given)
        made = getattr(op, kind)(*lists, **attributes)
        made.producer().metadata_props[MARK] = f"{mark} {chunk}"
        return made

    whole = values
    if inputs is not None and chunk > 1:  # rows of a chunk lie side by side, so that a chunk is one line to copy
        whole = call("Reshape", whole, [values.shape[0] // chunk, -1])
    if inputs is not None:
        whole = call("Gather", whole, inputs, axis=0)
    if chunk > 1 or (groups and inputs is None):
        whole = call("Reshape", whole, [*groups, kept, -1])
    whole = call("MatMul", weight, whole)
    if groups:
        whole = call("Reshape", whole, [groups[0] * rows, -1])
    return whole if bias is None else call("Add", whole, op.Unsqueeze(bias, op.Constant(value_ints=[1])))


def find_grouped_linears(graph: ir.Graph) -> tuple[GroupedLinear, ...]:
    """The grouped layers of a file, in graph order, by the marks of their nodes."""
    marked = dict[str, list[ir.Node]]()
    for node in graph:
        if mark := node.metadata_props.get(MARK):
            marked.setdefault(mark, []).append(node)
    found = (_read(nodes, int(mark.split()[1])) for mark, nodes in marked.items())
    return tuple(layer for layer in found if layer is not None)


def _read(nodes: list[ir.Node], chunk: int) -> GroupedLinear | None:
    """The layer of some nodes; None where an optimiser made something else of them."""
    kinds = {node.op_type: node for node in nodes}
    product, gather, add = (kinds.get(kind) for kind in ("MatMul", "Gather", "Add"))
    matrix, table = (node and node.inputs[place] for node, place in ((product, 0), (gather, 1)))
    weight, index, bias = (constant(value or None) for value in (matrix, table, add and add.inputs[1]))
    if product is None or matrix is None or weight is None:
        return None
    if (gather is not None and index is None) or (add is not None and bias is None):
        return None
    if gather is None and (weight.ndim == 3 or chunk > 1):  # its groups read their own parts, or share a selection
        return None
    first = gather or product
    chunked = first.inputs[0] if gather is not None and chunk > 1 else None
    split = chunked.producer() if chunked is not None else None
    if chunked is not None and only_reader(chunked) is None:  # other layers read the same chunks
        nodes = [node for node in nodes if node is not split]
    if any(use.node not in nodes for node in nodes[:-1] for value in node.outputs for use in value.uses()):
        return None  # another layer shares its selection
    reader = only_reader(nodes[-1].outputs[0])
    rectified = reader is not None and reader.op_type == "Relu"
    nodes = [*nodes, reader] if reader is not None and rectified else nodes
    weight = weight if weight.ndim == 3 else weight[None]
    return GroupedLinear(
        nodes=tuple(nodes),
        entry=(split or first, 1 if first is product else 0),
        result=nodes[-1].outputs[0],
        matrix=matrix,
        table=table,
        weight=weight,
        bias=None if bias is None else bias.reshape(-1),
        index=None if index is None else index.reshape(len(weight), -1),
        chunk=chunk,
        rectified=rectified,
    )
