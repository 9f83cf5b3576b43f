"""Selections for one sample: `GatherElements` where a batch of 1 makes rows single numbers, which `Gather` copies one by one.

A file of open batch computes the nodes from its first to its last selection in an `If` on the batch: one sample, or several by `Gather`.
Weights and tables of indices stay outside, stored once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from sparsify.errors import ExportError
from sparsify.exporters.graphs import Writer, reroute
from sparsify.exporters.skeleton import inferred
from sparsify.timing import Batches, values_of

SELECTIONS = ("by-batch", "gather")
LEAST = 256
"""Indices from which a selection is worth two nodes more: 1.5 ns a number against 9.4 (ONNX Runtime 1.31, AVX2)."""
LEAST_OPEN = 512
"""Indices of a file from which they are worth its `If` as well."""
MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "MaxPool")
TOLERANCE = 1e-4


class SingleSamples:
    """Writes selections of single numbers for one sample; where there are none, or too few to pay, the graph stays as it is.

    Rewritten is each `Gather` along the first axis of a value [F, N] by a constant table, N being 1, or the open batch of the file. Rows
    of more numbers (chunks of inputs, tokens) are lines that `Gather` copies well, and stay.

    Args:
        model: the file, from which sizes and types are inferred where they are needed and the graph does not have them.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model

    def __call__(self, graph: ir.Graph) -> bool:
        """Rewrite the graph of the file in place; whether something was."""
        selections = [node for node in graph if _selects(node)]
        if not selections or any(True for _ in graph.subgraphs()):
            return False
        known = _Known(self._model)
        batch = (known.sizes(graph.inputs[0]) or [None])[0]
        widths = {node: _width(known.sizes(_input(node, 0))) for node in selections}
        fixed = [node for node in selections if widths[node] == 1]
        opened = [node for node in selections if isinstance(batch, str) and widths[node] == batch]
        if sum(_table(node).size for node in opened) < LEAST_OPEN:
            opened = []
        if not fixed and not opened:
            return False
        front = Writer(graph[0], graph)
        flag = _one_sample(front, graph.inputs[0]) if opened else graph.inputs[0]
        lists = _lists(front, [*fixed, *opened])
        for node in fixed:
            _pick(node, graph, lists)
        for region in _regions(graph, opened) if opened else ():
            _branch(graph, region, flag, {node.outputs[0].name for node in opened}, lists, known)
        graph.sort()
        return True


def check_same(plain: ir.Model, written: ir.Model, batches: Batches) -> None:
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


def _input(node: ir.Node, place: int) -> ir.Value:
    found = node.inputs[place]
    assert found is not None
    return found


def _table(node: ir.Node) -> ir.TensorProtocol:
    """The indices of a selection."""
    found = _input(node, 1).const_value
    assert found is not None
    return found


def _selects(node: ir.Node) -> bool:
    """Whether a node is a `Gather` along the first axis of a value by a constant table that is large enough."""
    if node.op_type != "Gather" or node.attributes.get_int("axis", 0) or _input(node, 0).is_initializer():
        return False
    return _input(node, 1).is_initializer() and _table(node).size >= LEAST


class _Known:
    """Sizes and types of values: those that the graph has, else those that are inferred from the file, once."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model

    def sizes(self, value: ir.Value) -> list[int | str | None] | None:
        """An open size by its name, None where nothing is known of it."""
        if value.shape is not None:
            return [size if isinstance(size, int) else size.value for size in value.shape]
        kind = self._inferred.get(str(value.name))
        if kind is None or not kind.HasField("shape"):
            return None
        return [size.dim_value or size.dim_param or None for size in kind.shape.dim]

    def type(self, value: ir.Value) -> ir.TypeProtocol:
        return value.type or ir.TensorType(ir.DataType(self._inferred[str(value.name)].elem_type))

    @functools.cached_property
    def _inferred(self) -> dict[str, onnx.TypeProto.Tensor]:
        graph = inferred(self._model)
        return {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.input, *graph.output)}


def _width(sizes: list[int | str | None] | None) -> int | str | None:
    """The numbers of a row of a value [F, N]."""
    return sizes[1] if sizes is not None and len(sizes) == 2 else None


def _one_sample(write: Writer, given: ir.Value) -> ir.Value:
    """Whether the batch is 1."""
    size = write.call("Shape", [given], "batch_size", start=0, end=1)
    return write.call("Equal", [size, write.constant("one_sample_size", np.array([1]))], "one_sample")


def _lists(write: Writer, selections: Iterable[ir.Node]) -> dict[ir.Value, ir.Value]:
    """Tables as lists, once each; runtimes fold them when they load the file."""
    tables = dict.fromkeys(_input(node, 1) for node in selections if len(_table(node).shape) > 1)
    return {
        table: write.call("Reshape", [table, write.constant("one_sample_all", np.array([-1]))], f"{table.name}_list")
        for table in tables
    }


def _pick(node: ir.Node, graph: ir.Graph, lists: Mapping[ir.Value, ir.Value]) -> None:
    """Write a `Gather` of a value [F, 1] as `GatherElements`."""
    (source, table), result = (_input(node, 0), _input(node, 1)), node.outputs[0]
    write, shape = Writer(node, graph), list(_table(node).shape.numpy())
    flat = write.call("Reshape", [source, write.constant("one_sample_all", np.array([-1]))], f"{result.name}_source")
    picked = write.call("GatherElements", [flat, lists.get(table, table)], f"{result.name}_picked", axis=0)
    sizes = write.constant("one_sample_" + "x".join(map(str, shape)), np.array([*shape, 1]))
    write.replace(result, write.call("Reshape", [picked, sizes], f"{result.name}_shaped"))
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def _regions(graph: ir.Graph, selections: Sequence[ir.Node]) -> list[list[ir.Node]]:
    """All nodes from the first selection to the last; a region each where a runtime prepares weights of layers between them.

    Convolutions and products by a constant on the right are rewritten or packed when a file is loaded, in its main graph best of all.
    """
    whole = _between(graph, selections)
    if any(_prepared(node) for node in whole):
        return [_between(graph, [node]) for node in selections]
    return [whole]


def _between(graph: ir.Graph, ends: Collection[ir.Node]) -> list[ir.Node]:
    """The nodes on any path from one of ``ends`` to another, and those that move what enters.

    ONNX Runtime 1.31 aborts where a `DequantizeLinear` reaches a branch through an operator of `MOVES` outside of it.
    """
    while True:
        region = _reached(ends, ir.Node.successors) & _reached(ends, ir.Node.predecessors)
        before = {other for node in region for other in node.predecessors()}
        moved = {node for node in before - region if node.op_type in MOVES}
        if not moved:
            return [node for node in graph if node in region]
        ends = {*ends, *moved}


def _reached(starts: Iterable[ir.Node], step: Callable[[ir.Node], Iterable[ir.Node]]) -> set[ir.Node]:
    found, waiting = set[ir.Node](), list(starts)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(step(node))
    return found


def _prepared(node: ir.Node) -> bool:
    if node.op_type in ("MatMul", "MatMulInteger", "DequantizeLinear"):
        return _input(node, 0 if node.op_type == "DequantizeLinear" else 1).is_initializer()
    weight = _input(node, 1).const_value if node.op_type == "Conv" else None
    if weight is not None and len(weight.shape) == 3:
        return False  # of width 1: runtimes read its weights as they are
    return "Conv" in node.op_type or node.op_type == "Gemm"


def _branch(
    graph: ir.Graph,
    region: Sequence[ir.Node],
    flag: ir.Value,
    picked: Collection[str | None],
    lists: Mapping[ir.Value, ir.Value],
    known: _Known,
) -> None:
    """Put the nodes of a region into both branches of an `If`."""
    inside, results = set(region), list[ir.Value]()
    for value in (value for node in region for value in node.outputs):
        if value.is_graph_output() or any(use.node not in inside for use in value.uses()):
            value.type = known.type(value)
            results.append(value)
    made = [ir.Value(name=value.name, type=value.type, shape=value.shape) for value in results]
    whole = ir.Node("", "If", [flag], outputs=made, name=f"{results[0].name}_by_batch")
    graph.insert_before(region[0], whole)
    for old, new in zip(results, made, strict=True):
        reroute(old, new, [use.node for use in old.uses() if use.node not in inside])
        graph.outputs[:] = [new if value is old else value for value in graph.outputs]
    graph.remove(region)
    several = ir.Graph([], results, nodes=region, name="several")
    one = several.clone(allow_outer_scope_values=True)
    one.name = "one"
    for node in [node for node in one if node.op_type == "Gather" and node.outputs[0].name in picked]:
        _pick(node, graph, lists)
    for name, branch in (("then_branch", one), ("else_branch", several)):
        for node in branch:
            node.name = node.name and f"{node.name}_{branch.name}"
            for value in node.outputs:
                value.name, value.shape = f"{value.name}_{branch.name}", None
        whole.attributes[name] = ir.Attr(name, ir.AttributeType.GRAPH, branch)
