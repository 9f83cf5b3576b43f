"""Feature-major values: a value [N, F] is stored as [F, N], and [N, .., F] as [N, F, S], where S joins the dimensions in between.

If S is a single dimension, such as the length of a sequence, its size may vary, because no reshape has to name it.

Small matrices that each read some of the features want features as rows, because selecting rows copies whole lines of memory. Values keep
this form through elementwise operators, residual additions, layer norms and attention heads. Only other readers get the original form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from sparsify.ir import Program, TensorSpec, surgery
from sparsify.ir.axes import order_of
from sparsify.ir.dimensions import BATCH, mentions
from sparsify.ir.traits import argument, input_of, is_elementwise, kind_of, operands, traits, written

aten = torch.ops.aten
STRIDED = (aten.view.default, aten.view.dtype, aten._unsafe_view.default, aten.as_strided.default)
"""Operators whose result depends on the memory layout of a value, which a transpose changes."""
RESHAPES = ("reshape", "view", "flatten")
TURNS = ("permute", "transpose")


class FeatureMajor:
    """Builds feature-major twins of the values of one phase; `finish` transposes back the values that other nodes still read."""

    def __init__(self, program: Program, phase: str) -> None:
        self.program, self.phase = program, phase
        self.twins: dict[fx.Node, fx.Node] = {}
        self.readers: set[fx.Node] = set()
        self._strided = any(node.target in STRIDED for node in program.phases[phase].graph.nodes)

    def emit(
        self, anchor: fx.Node, target: Callable[..., Any], args: Sequence[Any], shape: Sequence[int | str]
    ) -> fx.Node:
        """Insert a call after ``anchor`` whose value has ``shape``."""
        spec = TensorSpec("", tuple(shape), _spec(anchor).dtype if _has_spec(anchor) else "float32")
        return surgery.call_after(self.program, self.phase, anchor, target, args, spec=spec)

    def of(self, node: fx.Node) -> fx.Node:
        """Return the twin of ``node``; if there is none yet, make it by a transpose."""
        if node not in self.twins:
            self.twins[node] = self._merged_heads(node) or self._transposed(node)
        return self.twins[node]

    def follow(self, node: fx.Node) -> None:
        """Make the twin of an elementwise operator or layer norm from the twins of its inputs."""
        if node in self.twins or any(written(node)):
            return
        match kept_by(node, self.twins):
            case "pointwise":
                self._made(node, {value: self.of(value) for value in node.all_input_nodes})
            case "reshape":
                self._split_heads(node, node.all_input_nodes[0])
            case "layer-norm":
                self._layer_norm(node)
            case _:
                pass

    def _made(self, node: fx.Node, swapped: Mapping[fx.Node, fx.Node]) -> None:
        """Insert after ``node`` a call of the same operator on the twins of its inputs."""
        spec = TensorSpec("", feature_shape(node), _spec(node).dtype)
        self.lowered(node, surgery.call_like(self.program, self.phase, node, node, swapped, spec=spec))

    def lowered(self, node: fx.Node, twin: fx.Node) -> None:
        """Register ``twin`` as the feature-major form of ``node``."""
        self.twins[node] = twin
        self.readers.add(node)

    def _layer_norm(self, node: fx.Node) -> None:
        value, shape = self.of(argument(node, "input")), feature_shape(node)
        row = (*shape[:-2], 1, shape[-1])
        # The mean is a product with a row of 1 / F: reducing the second-to-last dimension is several times slower in ONNX Runtime.
        weights = self.emit(node, aten.full.default, ([1, shape[-2]], 1 / int(shape[-2])), (1, shape[-2]))
        mean = self.emit(weights, aten.matmul.default, (weights, value), row)
        centred = self.emit(mean, aten.sub.Tensor, (value, mean), shape)
        square = self.emit(centred, aten.mul.Tensor, (centred, centred), shape)
        variance = self.emit(square, aten.matmul.default, (weights, square), row)
        shifted = self.emit(variance, aten.add.Tensor, (variance, argument(node, "eps")), row)
        deviation = self.emit(shifted, aten.sqrt.default, (shifted,), row)
        twin = self.emit(deviation, aten.div.Tensor, (centred, deviation), shape)
        for key, target in (("weight", aten.mul.Tensor), ("bias", aten.add.Tensor)):
            vector = argument(node, key)
            if isinstance(vector, fx.Node):
                column = self.emit(twin, aten.unsqueeze.default, (vector, 1), (shape[-2], 1))
                twin = self.emit(column, target, (twin, column), shape)
        self.lowered(node, twin)

    def _transposed(self, node: fx.Node) -> fx.Node:
        shape = feature_shape(node)
        if len(shape) == 2:
            return self.emit(node, aten.permute.default, (node, [1, 0]), shape)
        rows, flat = (shape[0], shape[2], shape[1]), node
        if len(_spec(node).shape) > 3:
            flat = self.emit(node, aten.reshape.default, (node, sizes(rows)), rows)
        return self.emit(flat, aten.permute.default, (flat, [0, 2, 1]), shape)

    def _merged_heads(self, node: fx.Node) -> fx.Node | None:
        """Make the twin of a reshape that joins the last two dimensions ([N, T, H, D] to [N, T, H * D]) without transposing twice.

        If the heads come from a matrix product [N, H, T, D], the product of the transposed factors already is the twin.
        """
        source = input_of(node) if traits(node).name in RESHAPES else None
        if not isinstance(source, fx.Node) or not _has_spec(source) or len(_spec(source).shape) < 4:
            return None
        before, after = _spec(source).shape, _spec(node).shape
        if len(before) != len(after) + 1 or before[:-2] != after[:-1]:
            return None
        rank = len(before)
        order, shape = [0, rank - 2, rank - 1, *range(1, rank - 2)], feature_shape(node)
        split = tuple(before[i] for i in order)
        if traits(source).name in TURNS:
            order, source = [order_of(source, rank)[i] for i in order], input_of(source)
        assert isinstance(source, fx.Node)
        if (
            source.target is aten.matmul.default
            and order == [*range(rank - 2), rank - 1, rank - 2]
            and all(map(_is_matrix, operands(source)))
        ):
            left, right = (self._swapped(node, value) for value in operands(source))
            heads = self.emit(left if left.prev is right else right, aten.matmul.default, (right, left), split)
        else:
            heads = self.emit(node, aten.permute.default, (source, order), split)
        if not _fixed(shape[1:]):
            return self.emit(heads, aten.flatten.using_ints, (heads, 1, 2), shape)
        return self.emit(heads, aten.reshape.default, (heads, sizes(shape)), shape)

    def _swapped(self, node: fx.Node, value: fx.Node) -> fx.Node:
        shape = _spec(value).shape
        order = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
        return self.emit(node, aten.permute.default, (value, order), tuple(shape[i] for i in order))

    def _split_heads(self, node: fx.Node, source: fx.Node) -> None:
        """Handle a reshape that splits the last dimension ([N, T, F] to [N, T, H, D]): split the twin and transpose it once."""
        before, after = _spec(source).shape, _spec(node).shape
        lead = len(before) - 1
        if len(after) <= len(before) or after[:lead] != before[:lead] or not _fixed(after[lead:]):
            return
        split, rank, kept = after[lead:], len(after), min(lead - 1, 1)
        shape = (*before[:kept], *split, *before[kept:lead])
        twin = self.twins[source]
        if _fixed(shape[1:]):
            parts = self.emit(node, aten.reshape.default, (twin, sizes(shape)), shape)
        else:
            parts = self.emit(node, aten.unflatten.int, (twin, 1, list(split)), shape)
        order = [*range(kept), *range(kept + len(split), rank), *range(kept, kept + len(split))]
        reader = next(iter(node.users), None)
        if len(node.users) == 1 and reader is not None and traits(reader).name in TURNS:
            surgery.set_arguments(reader, (parts, [order[i] for i in order_of(reader, rank)]))
            surgery.replace_target(reader, aten.permute.default)
        else:
            surgery.reroute(node, self.emit(parts, aten.permute.default, (parts, order), after))

    def finish(self) -> None:
        """Give every reader without a twin the original form again, made from the twin by a transpose."""
        for node in sorted(self.readers, key=list(self.program.phases[self.phase].graph.nodes).index):
            outside = [user for user in node.users if user not in self.readers and not self._is_ours(user)]
            if outside:
                surgery.reroute(node, self._rows(node), users=outside)
        surgery.erase_dead(self.program, self.phase)

    def _is_ours(self, user: fx.Node) -> bool:
        return user in self.twins.values()

    def _rows(self, node: fx.Node) -> fx.Node:
        twin, shape, turned = self.twins[node], _spec(node).shape, feature_shape(node)
        order = [*range(len(turned) - 2), len(turned) - 1, len(turned) - 2]
        rows = self.emit(twin, aten.permute.default, (twin, order), tuple(turned[i] for i in order))
        if len(shape) == len(turned):
            return self.emit(rows, aten.contiguous.default, (rows,), shape) if self._strided else rows
        return self.emit(rows, aten.reshape.default, (rows, sizes(shape)), shape)


def kept_by(node: fx.Node, turned: Container[object]) -> str:
    """Return the kind of operator by which a node keeps the feature-major form of its inputs.

    Args:
        node: an operator.
        turned: the values that have that form.

    Returns:
        ``linear``, ``pointwise`` (all inputs are turned), ``layer-norm``, ``reshape`` (which may split heads); empty if the node reads its
        inputs in their original form.
    """
    given = node.all_input_nodes
    if not given or not _has_spec(node):
        return ""
    if kind_of(node) == "linear":
        return "linear" if argument(node, "input") in turned and can_turn(node) else ""
    if kind_of(node) == "combination" and len(given) > 1:
        alike = all(_has_spec(value) and _spec(value).shape == _spec(node).shape for value in given)
        return "pointwise" if alike and can_turn(node) and any(value in turned for value in given) else ""
    if given[0] not in turned:
        return ""
    if is_elementwise(node):
        return "pointwise" if len(given) == 1 else ""
    if traits(node).name == "layer_norm":
        return "layer-norm" if _spec(node).dtype == "float32" and len(argument(node, "normalized_shape")) == 1 else ""
    return "reshape" if traits(node).name in RESHAPES else ""


def sizes(shape: Sequence[int | str]) -> list[int]:
    """Turn a shape into the argument of a reshape: the varying dimension becomes -1."""
    return [size if isinstance(size, int) else -1 for size in shape]


def feature_shape(node: fx.Node) -> tuple[int | str, ...]:
    """Return the feature-major shape: [F, N] for a value [N, F], and [N, F, S] for a value [N, .., F]."""
    first, *between, features = _spec(node).shape
    if not between:
        return features, first
    return (
        first,
        features,
        between[0] if len(between) == 1 else math.prod(size for size in between if isinstance(size, int)),
    )


def _fixed(shape: Sequence[int | str]) -> bool:
    return all(isinstance(size, int) for size in shape)


def can_turn(node: object) -> bool:
    """Return whether a value can have a twin.

    Its shape must be known, with at least two dimensions. Only the first may vary, and the second of three. The batch must not be in
    second place: with one sample, each line of the twin would be a single number.
    """
    if not isinstance(node, fx.Node) or not _has_spec(node) or len(_spec(node).shape) < 2:
        return False
    shape = _spec(node).shape
    return _fixed(shape[1:]) or (len(shape) == 3 and _fixed(shape[2:]) and not mentions(shape[1], BATCH))


def _is_matrix(value: object) -> bool:
    return isinstance(value, fx.Node) and _has_spec(value) and len(_spec(value).shape) > 1


def _has_spec(node: fx.Node) -> bool:
    return isinstance(node.meta.get("spec"), TensorSpec)


def _spec(node: fx.Node) -> TensorSpec:
    return node.meta["spec"]
