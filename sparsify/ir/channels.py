"""Channels: which layers write and read values whose channels must stand in one order, and whether that order is free.

The order of a layer's outputs is free where all that reads them is known to follow: weights of the next layers (their columns), of batch
norms, layer norms and depthwise convolutions. Values that are added to each other share their order, and so do the layers that write them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from sparsify.ir.nodes import MASK_OPERATORS, TensorSpec
from sparsify.ir.program import Program
from sparsify.ir.weight_reads import consumers

aten = torch.ops.aten
_CONV = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
_CONV += (aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)
_UNARY = (
    aten.relu.default, aten.relu_.default, aten.relu6.default, aten.gelu.default, aten.silu.default, aten.silu_.default,
    aten.sigmoid.default, aten.tanh.default, aten.hardtanh.default, aten.hardtanh_.default, aten.leaky_relu.default,
    aten.leaky_relu_.default, aten.elu.default, aten.elu_.default, aten.hardswish.default, aten.hardswish_.default, aten.selu.default,
    aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.clone.default, aten.contiguous.default,
)  # fmt: skip
_BINARY = (aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.mul_.Tensor, aten.div.Tensor)
_POOLS = (
    aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, aten.avg_pool1d.default, aten.avg_pool2d.default,
    aten.avg_pool3d.default, aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default,
)  # fmt: skip
_FLATTEN = (aten.flatten.using_ints, aten.reshape.default, aten.view.default)


@dataclass
class Channels:
    """Values of one order of channels.

    Attributes:
        writers: weights [O, I, *K] whose outputs they are, in the order of the parameters.
        readers: (weight [O, I, *K], run) whose inputs they are; a channel is ``run`` consecutive inputs, more than one after a flatten.
        vectors: parameters and buffers with one row a channel: biases, norms, depthwise kernels.
        pinned: why the order cannot change, or None.
    """

    writers: list[str] = field(default_factory=list)
    readers: list[tuple[str, int]] = field(default_factory=list)
    vectors: list[str] = field(default_factory=list)
    pinned: str | None = None

    def take(self, other: Channels) -> None:
        """Make the values of ``other`` ones of this order."""
        self.writers += other.writers
        self.readers += other.readers
        self.vectors += other.vectors
        self.pinned = self.pinned or other.pinned


@dataclass(frozen=True)
class _Place:
    """Where a value has its channels: the dimension, and how many entries of it a channel takes."""

    channels: Channels
    axis: int
    run: int = 1


def channel_sets(program: Program, phase: str = "eval") -> tuple[Channels, ...]:
    """The values of a phase by their order of channels; those no layer writes are left out."""
    return _Walk(program, phase).sets()


class _Walk:
    def __init__(self, program: Program, phase: str) -> None:
        self.program, self.module = program, program.phases[phase]
        self.names = {id(p): n for n, p in program.named_parameters()}
        self.tensors = dict(program.named_parameters(remove_duplicate=False))
        self.places: dict[fx.Node, _Place] = {}
        self.uses: dict[int, int] = {}
        for node in self.module.graph.nodes:
            if node.op == "get_attr" and node.target in self.tensors:
                key = id(self.tensors[str(node.target)])
                self.uses[key] = self.uses.get(key, 0) + sum(1 for _ in consumers(self.module, node))
        for node in self.module.graph.nodes:
            self._visit(node)

    def sets(self) -> tuple[Channels, ...]:
        found = {id(place.channels): place.channels for place in self.places.values()}
        order = {name: index for index, name in enumerate(self.names.values())}
        for channels in found.values():
            channels.writers.sort(key=order.__getitem__)
        return tuple(channels for channels in found.values() if channels.writers)

    def _visit(self, node: fx.Node) -> None:
        if node.op in ("placeholder", "get_attr") or node.target is aten.sym_size.int:
            return
        rule: Callable[[fx.Node], bool] | None = None
        if node.target in _CONV:
            rule = self._conv
        elif node.target is aten.linear.default:
            rule = self._linear
        elif node.target is aten.batch_norm.default:
            rule = self._batch_norm
        elif node.target is aten.layer_norm.default:
            rule = self._layer_norm
        elif node.target in _UNARY:
            rule = self._unary
        elif node.target in _POOLS:
            rule = self._pool
        elif node.target is aten.mean.dim:
            rule = self._mean
        elif node.target in _FLATTEN:
            rule = self._flatten
        elif node.target in _BINARY:
            rule = self._binary
        if rule is None or not rule(node):
            for value in node.all_input_nodes:
                if value in self.places:
                    self._pin(value, "it is an output" if node.op == "output" else f"%{node.name} reads it")

    def _pin(self, value: fx.Node, reason: str) -> None:
        channels = self.places[value].channels
        channels.pinned = channels.pinned or reason

    # --- layers

    def _conv(self, node: fx.Node) -> bool:
        groups = int(_argument(node, 6, "groups", 1))
        weight, place = self._source(node.args[1]), self.places.get(node.args[0])  # type: ignore[arg-type]
        if weight is None:
            return False
        if groups > 1:
            shape = self.program.get_parameter(weight).shape
            if shape[1] != 1 or shape[0] != groups or place is None or place.axis != 1:
                return False
            self.places[node] = place
            return self._vectors(place.channels, weight, node.args[2] if len(node.args) > 2 else None)
        return self._layer(node, weight, place, axis=1)

    def _linear(self, node: fx.Node) -> bool:
        weight, place = self._source(node.args[1]), self.places.get(node.args[0])  # type: ignore[arg-type]
        spec = node.meta.get("spec")
        if weight is None or not isinstance(spec, TensorSpec):
            return False
        return self._layer(node, weight, place, axis=len(spec.shape) - 1)

    def _layer(self, node: fx.Node, weight: str, place: _Place | None, *, axis: int) -> bool:
        alone = self.uses[id(self.program.get_parameter(weight))] == 1
        written = Channels(writers=[weight], pinned=None if alone else "another layer has the same weight")
        self.places[node] = _Place(written, axis)
        follows = place is not None and place.axis == axis and alone
        if follows:
            assert place is not None
            place.channels.readers.append((weight, place.run))
        bias = _argument(node, 2, "bias", None)
        if bias is not None and not self._vectors(written, None, bias):
            written.pinned = written.pinned or "its bias is shared"
        return follows or place is None

    def _vectors(self, channels: Channels, *values: object) -> bool:
        """Let the channels' order decide that of parameters and buffers, each read here alone; whether all are."""
        names: list[str] = []
        for value in values:
            name = value if isinstance(value, str) else self._source(value, buffers=True) if value is not None else None
            if value is not None and (name is None or self._reads(name) > 1):
                return False
            names += [] if name is None else [name]
        channels.vectors += names
        return True

    def _reads(self, name: str) -> int:
        tensor = self.program.tensor(name)
        if id(tensor) in self.uses:
            return self.uses[id(tensor)]
        return sum(len(n.users) for n in self.module.graph.nodes if n.op == "get_attr" and n.target == name)

    def _source(self, value: object, *, buffers: bool = False) -> str | None:
        """The name of the parameter (or buffer) behind an argument, through its mask."""
        while isinstance(value, fx.Node) and (value.target in MASK_OPERATORS or value.op == "call_module"):
            value = value.args[0]
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return None
        tensor = self.tensors.get(str(value.target))
        return str(value.target) if tensor is None and buffers else self.names.get(id(tensor))

    # --- what lies between

    def _batch_norm(self, node: fx.Node) -> bool:
        place = self._kept(node)
        return (
            place is not None and place.axis == 1 and place.run == 1 and self._vectors(place.channels, *node.args[1:5])
        )

    def _layer_norm(self, node: fx.Node) -> bool:
        place, rank = self._kept(node), len(_shape(node))
        whole = place is not None and place.axis == rank - 1 and place.run == 1 and len(node.args[1]) == 1  # type: ignore[arg-type]
        return whole and self._vectors(place.channels, *node.args[2:4])  # type: ignore[union-attr]

    def _unary(self, node: fx.Node) -> bool:
        return self._kept(node) is not None

    def _pool(self, node: fx.Node) -> bool:
        place = self._kept(node)
        return place is not None and place.axis == 1

    def _kept(self, node: fx.Node) -> _Place | None:
        """The place of the first argument, which becomes that of the result."""
        place = self.places.get(node.args[0])  # type: ignore[arg-type]
        if place is not None:
            self.places[node] = place
        return place

    def _mean(self, node: fx.Node) -> bool:
        source = node.args[0]
        place, rank = self.places.get(source), len(_shape(source))  # type: ignore[arg-type]
        if place is None:
            return False
        gone = {int(d) % rank for d in node.args[1]}  # type: ignore[union-attr, arg-type]
        if place.axis in gone:
            return False
        lost = 0 if _argument(node, 2, "keepdim", False) else sum(d < place.axis for d in gone)
        self.places[node] = _Place(place.channels, place.axis - lost, place.run)
        return True

    def _flatten(self, node: fx.Node) -> bool:
        """[N, C, *K] -> [N, C * prod(K)]."""
        source = node.args[0]
        place, before, after = self.places.get(source), _shape(source), _shape(node)  # type: ignore[arg-type]
        if place is None or place.axis != 1 or len(after) != 2 or before[:1] != after[:1] or not _fixed(before[1:]):
            return False
        run = int(after[1]) // int(before[1])
        self.places[node] = _Place(place.channels, 1, place.run * run)
        return True

    def _binary(self, node: fx.Node) -> bool:
        values = [value for value in node.args[:2] if isinstance(value, fx.Node)]
        placed = [value for value in values if value in self.places]
        if not placed:
            return False
        first = self.places[placed[0]]
        for value in values:
            shape, place = _shape(value), self.places.get(value)
            if place is None:
                before = len(_shape(node)) - len(shape)  # dimensions a smaller value does not have
                if first.axis >= before and shape[first.axis - before] != 1:
                    return False
            else:
                alike = len(shape) == len(_shape(node)) and (place.axis, place.run) == (first.axis, first.run)
                if not alike or shape[place.axis] != _shape(node)[place.axis]:
                    return False
        for value in placed[1:]:
            self._join(first.channels, self.places[value].channels)
        self.places[node] = first
        return True

    def _join(self, kept: Channels, gone: Channels) -> None:
        if kept is gone:
            return
        kept.take(gone)
        for node, place in self.places.items():
            if place.channels is gone:
                self.places[node] = _Place(kept, place.axis, place.run)


def written_together(program: Program, weights: Sequence[str]) -> list[tuple[str, ...]]:
    """``weights`` in tuples: those whose outputs have one order of channels, and each other alone, in the order given."""
    found: dict[str, tuple[str, ...]] = {name: (name,) for name in weights}
    for channels in channel_sets(program):
        members = tuple(name for name in weights if name in channels.writers)
        found |= dict.fromkeys(members, members)
    return list(dict.fromkeys(found[name] for name in weights))


def _argument(node: fx.Node, index: int, key: str, default: Any) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(key, default)


def _shape(node: fx.Node) -> tuple[int | str, ...]:
    spec = node.meta.get("spec")
    return spec.shape if isinstance(spec, TensorSpec) else ()


def _fixed(shape: tuple[int | str, ...]) -> bool:
    return all(isinstance(size, int) for size in shape)
