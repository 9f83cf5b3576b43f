"""Selections for one sample: `GatherElements` where a batch of 1 makes rows single numbers, which `Gather` copies one by one.

A file of open batch computes the nodes from its first to its last selection in an `If` on the batch: one sample, or several by `Gather`.
Weights and tables of indices stay outside, stored once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sparsify.errors import ExportError
from sparsify.exporters.skeleton import inferred
from sparsify.timing import Batches, values_of

SELECTIONS = ("by-batch", "gather")
LEAST = 256
"""Indices from which a selection is worth two nodes more: 1.5 ns a number against 9.4 (ONNX Runtime 1.31, AVX2)."""
LEAST_OPEN = 512
"""Indices of a file from which they are worth its `If` as well."""
MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "MaxPool")
TOLERANCE = 1e-4
Nodes = Sequence[onnx.NodeProto]


def single_samples(model: onnx.ModelProto) -> onnx.ModelProto:
    """The file with selections of single numbers for one sample; the same file where there are none, or too few to pay.

    Rewritten is each `Gather` along the first axis of a value [F, N] by a constant table, N being 1, or the open batch of the file. Rows
    of more numbers (chunks of inputs, tokens) are lines that `Gather` copies well, and stay.
    """
    nodes = list(model.graph.node)  # held, so that ids stay theirs
    if any(attribute.type == onnx.AttributeProto.GRAPH for node in nodes for attribute in node.attribute):
        return model
    tables = {item.name: item for item in model.graph.initializer}
    if not any(node.op_type == "Gather" and _selects(node, tables) for node in nodes):
        return model
    sizes, kinds = _known(model)
    batch = (sizes.get(model.graph.input[0].name) or [None])[0]
    widths = {id(node): _width(node, tables, sizes) for node in nodes if node.op_type == "Gather"}
    fixed = [node for node in nodes if widths.get(id(node)) == 1]
    opened = [node for node in nodes if isinstance(batch, str) and widths.get(id(node)) == batch]
    if sum(_count(tables[node.input[1]]) for node in opened) < LEAST_OPEN:
        opened = []
    if not fixed and not opened:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    writer = _Writer(tables)
    for node in fixed:
        place = _place(nodes, node)
        nodes[place : place + 1] = writer.picked(node)
    for region in _regions(nodes, opened, tables):
        nodes = _branched(nodes, region, writer, kinds, {value.name for value in model.graph.output})
    if opened:
        nodes = [*writer.condition(model.graph.input[0].name), *writer.tables(opened), *nodes]
    else:
        nodes = [*writer.tables(fixed), *nodes]
    del result.graph.node[:], result.graph.value_info[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(writer.constants.values())
    outside = {name for node in nodes for name in node.output}
    result.graph.value_info.extend(value for value in model.graph.value_info if value.name in outside)
    return result


def check_same(plain: onnx.ModelProto, written: onnx.ModelProto, batches: Batches) -> None:
    """Run both files on all batches, among which should be the smallest that they take.

    Raises:
        ExportError: If an output differs.
    """
    wanted, found = values_of(plain, batches), values_of(written, batches)
    for place, feeds in enumerate(batches):
        for name, values in wanted.items():
            if not _same(np.asarray(values[place], np.float64), np.asarray(found[name][place], np.float64)):
                shapes = ", ".join(f"{given} {list(value.shape)}" for given, value in feeds.items())
                raise ExportError(
                    f"output {name!r} depends on how inputs are selected, with inputs {shapes}. Export with selection='gather', "
                    f"and please report this model."
                )


def _same(want: np.ndarray, have: np.ndarray) -> bool:
    """Whether numbers are within `TOLERANCE` of the largest, and those that are not finite are the same."""
    size = np.abs(want).max(where=np.isfinite(want), initial=1e-30)
    return want.shape == have.shape and np.allclose(have, want, rtol=0, atol=TOLERANCE * size, equal_nan=True)


class _Writer:
    """Nodes for one sample, and the constants they read."""

    def __init__(self, tables: Mapping[str, TensorProto]) -> None:
        self._tables = tables
        self.constants: dict[str, TensorProto] = {}
        self.flag = "one_sample"

    def constant(self, name: str, values: Sequence[int]) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def condition(self, name: str) -> Nodes:
        """Whether the batch is 1."""
        one = self.constant("one_sample_size", [1])
        return [
            helper.make_node("Shape", [name], ["batch_size"], name="batch_size_node", start=0, end=1),
            helper.make_node("Equal", ["batch_size", one], [self.flag], name="one_sample_node"),
        ]

    def tables(self, selections: Nodes) -> Nodes:
        """Tables as lists, once each; runtimes fold them when they load the file."""
        names = dict.fromkeys(node.input[1] for node in selections if len(self._tables[node.input[1]].dims) > 1)
        everything = self.constant("one_sample_all", [-1]) if names else ""
        return [
            helper.make_node("Reshape", [name, everything], [f"{name}_list"], name=f"{name}_list_node")
            for name in names
        ]

    def picked(self, node: onnx.NodeProto) -> Nodes:
        """What a `Gather` gives of a value [F, 1]."""
        (source, table), result = node.input, node.output[0]
        shape = self._tables[table].dims
        index = f"{table}_list" if len(shape) > 1 else table
        whole = self.constant("one_sample_all", [-1])
        sizes = self.constant("one_sample_" + "x".join(map(str, shape)), [*shape, 1])
        return [
            helper.make_node("Reshape", [source, whole], [f"{result}_source"], name=f"{result}_source_node"),
            helper.make_node(
                "GatherElements",
                [f"{result}_source", index],
                [f"{result}_picked"],
                name=f"{result}_picked_node",
                axis=0,
            ),
            helper.make_node("Reshape", [f"{result}_picked", sizes], [result], name=f"{result}_node"),
        ]


def _regions(nodes: Nodes, selections: Nodes, tables: Mapping[str, TensorProto]) -> list[list[onnx.NodeProto]]:
    """All nodes from the first selection to the last; a region each where a runtime prepares weights of layers between them.

    Convolutions and products by a constant on the right are rewritten or packed when a file is loaded, in its main graph best of all.
    """
    whole = _between(nodes, selections)
    if any(_prepared(node, tables) for node in whole):
        return [_between(nodes, [node]) for node in selections]
    return [whole] if whole else []


def _between(nodes: Nodes, ends: Nodes) -> list[onnx.NodeProto]:
    """The nodes on any path from one of ``ends`` to another, and those that move what enters.

    ONNX Runtime 1.31 aborts where a `DequantizeLinear` reaches a branch through an operator of `MOVES` outside of it.
    """
    chosen, producer = {id(node) for node in ends}, {name: node for node in nodes for name in node.output}
    while True:
        behind, ahead, after, before = set[str](), set[str](), set[int](), set[int]()
        for node in nodes:
            if id(node) in chosen or behind.intersection(node.input):
                behind.update(node.output)
                after.add(id(node))
        for node in reversed(nodes):
            if id(node) in chosen or ahead.intersection(node.output):
                ahead.update(node.input)
                before.add(id(node))
        region = [node for node in nodes if id(node) in after & before]
        entering = (producer[name] for node in region for name in node.input if name in producer)
        moved = {id(node) for node in entering if node.op_type in MOVES and id(node) not in after & before}
        if not moved:
            return region
        chosen |= moved


def _prepared(node: onnx.NodeProto, tables: Mapping[str, TensorProto]) -> bool:
    if node.op_type in ("MatMul", "MatMulInteger", "DequantizeLinear"):
        return node.input[0 if node.op_type == "DequantizeLinear" else 1] in tables
    if node.op_type == "Conv" and node.input[1] in tables and len(tables[node.input[1]].dims) == 3:
        return False  # of width 1: runtimes read its weights as they are
    return "Conv" in node.op_type or node.op_type == "Gemm"


def _branched(
    nodes: Nodes, region: Nodes, writer: _Writer, kinds: Mapping[str, int], outputs: set[str]
) -> list[onnx.NodeProto]:
    """The nodes, those of a region in both branches of an `If`."""
    inside = {id(node) for node in region}
    made = {name for node in region for name in node.output}
    read = {name for node in nodes if id(node) not in inside for name in node.input}
    results = [name for node in region for name in node.output if name in read or name in outputs]
    one = [part for node in region for part in (writer.picked(node) if node.op_type == "Gather" else [node])]
    bodies = [
        helper.make_graph(
            _renamed(parts, suffix),
            suffix,
            [],
            [helper.make_tensor_value_info(f"{name}_{suffix}", kinds[name], None) for name in results],
        )
        for parts, suffix in ((one, "one"), (region, "several"))
    ]
    whole = helper.make_node("If", [writer.flag], results, name=f"{results[0]}_by_batch")
    whole.attribute.extend(map(helper.make_attribute, ("then_branch", "else_branch"), bodies))
    before, after, later = list[onnx.NodeProto](), list[onnx.NodeProto](), set(made)
    for node in nodes:
        if id(node) not in inside:
            depends = bool(later.intersection(node.input))
            (after if depends else before).append(node)
            later.update(node.output if depends else ())
    return [*before, whole, *after]


def _renamed(nodes: Iterable[onnx.NodeProto], suffix: str) -> list[onnx.NodeProto]:
    """Copies with names of their own for what they make."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    made = {name for node in copies for name in node.output}
    for node in copies:
        node.name = f"{node.name}_{suffix}" if node.name else ""
        for names in (node.input, node.output):
            names[:] = [f"{name}_{suffix}" if name in made else name for name in names]
    return copies


def _known(model: onnx.ModelProto) -> tuple[dict[str, list[int | str | None]], dict[str, int]]:
    """Sizes and element types by tensor; an open size by its name, None where nothing is known of it."""
    graph = inferred(model)
    types = {v.name: v.type.tensor_type for v in (*graph.value_info, *graph.input, *graph.output)}
    sizes = {
        name: [d.dim_value or d.dim_param or None for d in kind.shape.dim]
        for name, kind in types.items()
        if kind.HasField("shape")
    }
    return sizes, {name: kind.elem_type for name, kind in types.items()}


def _width(
    node: onnx.NodeProto, tables: Mapping[str, TensorProto], sizes: Mapping[str, list[int | str | None]]
) -> int | str | None:
    """The numbers of a row that a `Gather` along the first axis copies, where its table is constant and large enough."""
    shape = sizes.get(node.input[0])
    return shape[1] if _selects(node, tables) and shape is not None and len(shape) == 2 else None


def _selects(node: onnx.NodeProto, tables: Mapping[str, TensorProto]) -> bool:
    """Whether a `Gather` selects along the first axis of a value by a constant table that is large enough."""
    table = tables.get(node.input[1])
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    return not axis and table is not None and _count(table) >= LEAST and node.input[0] not in tables


def _count(table: TensorProto) -> int:
    return int(np.prod(table.dims))


def _place(nodes: Nodes, node: onnx.NodeProto) -> int:
    return next(i for i, other in enumerate(nodes) if other is node)
