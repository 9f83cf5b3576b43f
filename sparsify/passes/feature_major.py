"""Feature-major values: a value [.., F] of a graph as [F, M], M being all its other dimensions in order.

Small matrices that each read some features want them as rows: taking rows is a copy of whole lines. Values stay in this form through
elementwise operators, residual additions and layer norms, and are turned back only for readers that need the original.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from sparsify.ir import Program, TensorSpec, surgery

aten = torch.ops.aten
UNARY = (
    aten.relu.default, aten.relu_.default, aten.gelu.default, aten.silu.default, aten.silu_.default, aten.sigmoid.default,
    aten.tanh.default, aten.hardtanh.default, aten.leaky_relu.default, aten.elu.default, aten.hardswish.default,
    aten.dropout.default, aten.clone.default, aten.contiguous.default,
)  # fmt: skip
BINARY = (aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)
RESHAPES = (aten.reshape.default, aten.view.default, aten.flatten.using_ints)


class FeatureMajor:
    """Builds feature-major twins of the values of one phase; `finish` turns back what others still read."""

    def __init__(self, program: Program, phase: str) -> None:
        self.program, self.phase = program, phase
        self.twins: dict[fx.Node, fx.Node] = {}
        self.readers: set[fx.Node] = set()

    def emit(
        self, anchor: fx.Node, target: Callable[..., Any], args: Sequence[Any], shape: Sequence[int | str]
    ) -> fx.Node:
        """A call behind ``anchor`` with a value of ``shape``."""
        spec = TensorSpec("", tuple(shape), _spec(anchor).dtype if _has_spec(anchor) else "float32")
        return surgery.call_after(self.program, self.phase, anchor, target, args, spec=spec)

    def of(self, node: fx.Node) -> fx.Node:
        """The twin [F, M] of ``node``; made by a transpose where nothing better is known."""
        if node not in self.twins:
            self.twins[node] = self._merged_heads(node) or self._transposed(node)
        return self.twins[node]

    def follow(self, node: fx.Node) -> None:
        """Give an elementwise operator or layer norm of values that have twins a twin of its own."""
        given = [a for a in node.args if isinstance(a, fx.Node)]
        if not _has_spec(node) or node in self.twins:
            return
        if node.target in UNARY and given[0] in self.twins:
            self._made(node, self.emit_like(node, node.target, (self.twins[given[0]], *node.args[1:])))
        elif node.target in BINARY and any(value in self.twins for value in given):
            same = all(_has_spec(v) and _spec(v).shape == _spec(node).shape for v in given)
            if same and _open_dimensions(node) <= 1:
                arguments = [self.of(a) if isinstance(a, fx.Node) else a for a in node.args]
                self._made(node, self.emit_like(node, node.target, arguments))
        elif node.target in RESHAPES and given[0] in self.twins:
            self._split_heads(node, given[0])
        elif node.target is aten.layer_norm.default and given[0] in self.twins and len(node.args[1]) == 1:  # type: ignore[arg-type]
            self._layer_norm(node)

    def emit_like(self, node: fx.Node, target: Callable[..., Any], args: Sequence[Any]) -> fx.Node:
        """A call behind ``node``, with a value of the twin's shape."""
        return self.emit(node, target, args, feature_shape(node))

    def _made(self, node: fx.Node, twin: fx.Node) -> None:
        if node.kwargs:
            twin.kwargs = dict(node.kwargs)
        self.twins[node] = twin
        self.readers.add(node)

    def lowered(self, node: fx.Node, twin: fx.Node) -> None:
        """``twin`` computes what ``node`` does."""
        self.twins[node] = twin
        self.readers.add(node)

    def _layer_norm(self, node: fx.Node) -> None:
        value, shape = self.of(node.args[0]), feature_shape(node)  # type: ignore[arg-type]
        row = (1, shape[1])
        mean = self.emit(node, aten.mean.dim, (value, [0], True), row)
        centred = self.emit(mean, aten.sub.Tensor, (value, mean), shape)
        square = self.emit(centred, aten.mul.Tensor, (centred, centred), shape)
        variance = self.emit(square, aten.mean.dim, (square, [0], True), row)
        shifted = self.emit(variance, aten.add.Tensor, (variance, node.args[4] if len(node.args) > 4 else 1e-5), row)
        deviation = self.emit(shifted, aten.sqrt.default, (shifted,), row)
        twin = self.emit(deviation, aten.div.Tensor, (centred, deviation), shape)
        for index, target in ((2, aten.mul.Tensor), (3, aten.add.Tensor)):
            argument = node.args[index] if len(node.args) > index else None
            if isinstance(argument, fx.Node):
                column = self.emit(twin, aten.unsqueeze.default, (argument, 1), (shape[0], 1))
                twin = self.emit(column, target, (twin, column), shape)
        self.lowered(node, twin)

    def _transposed(self, node: fx.Node) -> fx.Node:
        shape = feature_shape(node)
        flat = node
        if len(_spec(node).shape) > 2:
            flat = self.emit(node, aten.reshape.default, (node, [-1, shape[0]]), (shape[1], shape[0]))
        return self.emit(flat, aten.permute.default, (flat, [1, 0]), shape)

    def _merged_heads(self, node: fx.Node) -> fx.Node | None:
        """The twin of a reshape that joins the last two dimensions ([N, T, H, D] to [N, T, H * D]): one transpose instead of two."""
        source = node.args[0] if node.target in RESHAPES else None
        if not isinstance(source, fx.Node) or not _has_spec(source):
            return None
        before, after = _spec(source).shape, _spec(node).shape
        if len(before) != len(after) + 1 or before[:-2] != after[:-1]:
            return None
        rank = len(before)
        moved = self.emit(
            node, aten.permute.default, (source, [rank - 2, rank - 1, *range(rank - 2)]), (*before[-2:], *before[:-2])
        )
        return self.emit(moved, aten.reshape.default, (moved, [after[-1], -1]), feature_shape(node))

    def _split_heads(self, node: fx.Node, source: fx.Node) -> None:
        """A reshape that splits the last dimension ([N, T, F] to [N, T, H, D]): one transpose of the twin in its place."""
        before, after = _spec(source).shape, _spec(node).shape
        lead = len(before) - 1
        if lead == 0 or len(after) <= len(before) or after[:lead] != before[:lead] or not _fixed(after[lead:]):
            return
        split, rank = after[lead:], len(after)
        parts = self.emit(
            node, aten.reshape.default, (self.twins[source], sizes((*split, *before[:lead]))), (*split, *before[:lead])
        )
        order = [*range(rank - lead, rank), *range(rank - lead)]
        reader = next(iter(node.users), None)
        if len(node.users) == 1 and reader is not None and reader.target in (aten.permute.default, aten.transpose.int):
            reader.args = (parts, [order[i] for i in _order(reader, rank)])
            surgery.replace_target(reader, aten.permute.default)
        else:
            moved = self.emit(parts, aten.permute.default, (parts, order), after)
            node.replace_all_uses_with(moved)

    def finish(self) -> None:
        """Let every reader outside read the original form again, made from the twin."""
        for node in sorted(self.readers, key=list(self.program.phases[self.phase].graph.nodes).index):
            outside = [user for user in node.users if user not in self.readers and not self._is_ours(user)]
            if outside:
                back = self._rows(node)
                for user in outside:
                    user.replace_input_with(node, back)
        surgery.erase_dead(self.program, self.phase)

    def _is_ours(self, user: fx.Node) -> bool:
        return user in self.twins.values()

    def _rows(self, node: fx.Node) -> fx.Node:
        twin, shape = self.twins[node], _spec(node).shape
        rows = self.emit(twin, aten.permute.default, (twin, [1, 0]), feature_shape(node)[::-1])
        if len(shape) == 2:
            return rows
        return self.emit(rows, aten.reshape.default, (rows, sizes(shape)), shape)


def sizes(shape: Sequence[int | str]) -> list[int]:
    """A shape for a reshape: the open dimension is -1."""
    return [size if isinstance(size, int) else -1 for size in shape]


def feature_shape(node: fx.Node) -> tuple[int | str, int | str]:
    """[F, M] of a value [.., F]."""
    *lead, features = _spec(node).shape
    fixed, free = 1, []
    for size in lead:
        if isinstance(size, int):
            fixed *= size
        else:
            free.append(size)
    return features, "*".join(([str(fixed)] if fixed > 1 else []) + free) if free else fixed


def _order(node: fx.Node, rank: int) -> list[int]:
    """The order of dimensions a permute or transpose gives."""
    if node.target is aten.permute.default:
        return [int(i) % rank for i in node.args[1]]  # type: ignore[union-attr, arg-type]
    order = list(range(rank))
    a, b = (int(i) % rank for i in node.args[1:3])  # type: ignore[arg-type]
    order[a], order[b] = order[b], order[a]
    return order


def _fixed(shape: Sequence[int | str]) -> bool:
    return all(isinstance(size, int) for size in shape)


def can_turn(node: object) -> bool:
    """Whether a value has a twin: known shape, at least two dimensions, at most one of them open."""
    return isinstance(node, fx.Node) and _has_spec(node) and len(_spec(node).shape) > 1 and _open_dimensions(node) <= 1


def _open_dimensions(node: fx.Node) -> int:
    return sum(not isinstance(size, int) for size in _spec(node).shape)


def _has_spec(node: fx.Node) -> bool:
    return isinstance(node.meta.get("spec"), TensorSpec)


def _spec(node: fx.Node) -> TensorSpec:
    return node.meta["spec"]
