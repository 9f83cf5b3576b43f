"""Channels: find the values that must share one order of channels, with the layers that write and read them.

The order of a layer's outputs is free if all their readers can be reordered with them: the columns of the next layers' weights, batch
norms, layer norms and depthwise convolutions. Values that are added share one order, and so do the layers that write them. If the order
is free, channels can also be removed, unless a norm runs over them or the graph reads their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import fx

from sparsify.ir.axes import Axis, axis_after, shape_of
from sparsify.ir.layers import Layer, layer_of, source_of
from sparsify.ir.program import Program
from sparsify.ir.traits import argument, draws, has_argument, input_of, kind_of, traits
from sparsify.ir.weight_reads import consumers


@dataclass
class Channels:
    """Channels of all values that share one order.

    Attributes:
        writers: names of the weights [O, I, *K] whose outputs these channels are, in the order of the parameters.
        readers: pairs (name of a weight [O, I, *K], run) whose inputs these channels are. Each channel is ``run`` consecutive inputs; after
            a flatten, ``run`` is more than 1.
        vectors: names of parameters and buffers with one row per channel: biases, norms, depthwise kernels.
        pinned: why the order cannot change, or None if it can.
        fixed: why the number of channels cannot change although the order can, or None.
        values: nodes that carry the channels, in graph order, with the axis of the channels.
        layers: nodes of the layers that write them, then of the layers that read them, each in graph order.
        depthwise: the depthwise convolutions among ``values``.
    """

    writers: list[str] = field(default_factory=list)
    readers: list[tuple[str, int]] = field(default_factory=list)
    vectors: list[str] = field(default_factory=list)
    pinned: str | None = None
    fixed: str | None = field(default=None, compare=False)
    values: dict[fx.Node, Axis] = field(default_factory=dict, compare=False, repr=False)
    written_by: list[Layer] = field(default_factory=list, compare=False, repr=False)
    read_by: list[Layer] = field(default_factory=list, compare=False, repr=False)
    depthwise: list[fx.Node] = field(default_factory=list, compare=False, repr=False)

    def take(self, other: Channels) -> None:
        """Merge ``other`` into this set: from now on, its values have this order."""
        for name in ("writers", "readers", "vectors", "written_by", "read_by", "depthwise"):
            getattr(self, name).extend(getattr(other, name))
        self.pinned, self.fixed = self.pinned or other.pinned, self.fixed or other.fixed
        self.values |= other.values


def channel_sets(program: Program, phase: str = "eval") -> tuple[Channels, ...]:
    """Group the values of a phase by their order of channels; values that no layer writes are left out."""
    return _Walk(program, phase).sets()


class _Walk:
    def __init__(self, program: Program, phase: str) -> None:
        self.program, self.module = program, program.phases[phase]
        self.names = {id(p): n for n, p in program.named_parameters()}
        self.tensors = dict(program.named_parameters(remove_duplicate=False))
        self.found: dict[fx.Node, Channels] = {}
        self.uses: dict[int, int] = {}
        for node in self.module.graph.nodes:
            if node.op == "get_attr":
                key = id(program.tensor(str(node.target)))
                self.uses[key] = self.uses.get(key, 0) + sum(1 for _ in consumers(self.module, node))
        for node in self.module.graph.nodes:
            self._visit(node)

    def sets(self) -> tuple[Channels, ...]:
        found = {id(channels): channels for channels in self.found.values()}
        order = {name: index for index, name in enumerate(self.names.values())}
        for channels in found.values():
            channels.writers.sort(key=order.__getitem__)
        return tuple(channels for channels in found.values() if channels.writers)

    def _visit(self, node: fx.Node) -> None:
        if node.op in ("placeholder", "get_attr"):
            return
        layer, found = layer_of(node), kind_of(node)
        if traits(node).name == "sym_size":
            self._asked(node)
            return
        if layer is not None:
            follows = self._layer(layer)
        elif found == "norm":
            follows = self._norm(node)
        elif found == "combination":
            follows = self._combination(node)
        else:
            follows = self._moved(node)
        if not follows:
            for value in node.all_input_nodes:
                if value in self.found:
                    self._pin(value, "it is an output" if node.op == "output" else f"%{node.name} reads it")

    def _pin(self, value: fx.Node, reason: str) -> None:
        channels = self.found[value]
        channels.pinned = channels.pinned or reason

    def _asked(self, node: fx.Node) -> None:
        """Handle a node that reads the size of a dimension: if that dimension holds the channels, their number is fixed."""
        value = input_of(node)
        if value in self.found and argument(node, "dim") % len(shape_of(value)) == self._axis(value).dimension:
            self.found[value].fixed = f"%{node.name} reads their number"

    def _axis(self, value: fx.Node) -> Axis:
        return self.found[value].values[value]

    def _put(self, node: fx.Node, channels: Channels, axis: Axis) -> None:
        self.found[node] = channels
        channels.values[node] = axis
        if draws(node):
            channels.fixed = f"%{node.name} draws random numbers for them"

    # --- layers

    def _layer(self, layer: Layer) -> bool:
        weight, source = self._source(layer.weight), layer.input
        if weight is None:
            return False
        place = self._axis(source) if source in self.found else None
        unshared = self.uses[id(self.program.get_parameter(weight))] == 1
        if layer.groups > 1:
            shape = self.program.get_parameter(weight).shape
            if shape[1] != 1 or shape[0] != layer.groups or place != Axis(layer.axis):
                return False
            self._put(layer.node, self.found[source], Axis(layer.axis))
            self.found[source].depthwise.append(layer.node)
            return self._vectors(self.found[source], layer.weight, layer.bias)
        written = Channels(
            writers=[weight], written_by=[layer], pinned=None if unshared else "another layer has the same weight"
        )
        self._put(layer.node, written, Axis(layer.axis))
        follows = place is not None and place.dimension == layer.axis and unshared
        if follows:
            assert place is not None
            self.found[source].readers.append((weight, place.run))
            self.found[source].read_by.append(layer)
        if not self._vectors(written, layer.bias):
            written.pinned = written.pinned or "its bias is shared"
        return follows or place is None

    def _vectors(self, channels: Channels, *values: object) -> bool:
        """Add parameters and buffers with one row per channel; returns whether each of them is read only here."""
        names: list[str] = []
        for value in values:
            name = self._source(value, buffers=True)
            if value is not None and (name is None or self.uses[id(self.program.tensor(name))] > 1):
                return False
            names += [] if name is None else [name]
        channels.vectors += names
        return True

    def _source(self, value: object, *, buffers: bool = False) -> str | None:
        """Return the name of the parameter (or buffer) that an argument reads, looking through masks."""
        node = source_of(value)
        tensor = self.tensors.get(str(node.target)) if node is not None else None
        return str(node.target) if node is not None and tensor is None and buffers else self.names.get(id(tensor))

    # --- what lies between

    def _moved(self, node: fx.Node) -> bool:
        """Handle an operator of one value that does not mix channels; returns whether the node is one."""
        source = input_of(node) if node.op == "call_function" else None
        if not isinstance(source, fx.Node) or source not in self.found:
            return False
        axis = axis_after(node, self._axis(source))
        if axis is not None:
            self._put(node, self.found[source], axis)
        return axis is not None

    def _norm(self, node: fx.Node) -> bool:
        """Handle an operator with one number per channel (batch norm, instance norm, PReLU), or a norm over the channels."""
        source = input_of(node)
        if source not in self.found:
            return False
        channels, axis, name = self.found[source], self._axis(source), traits(node).name
        keys = [key for key in ("weight", "bias", "running_mean", "running_var") if has_argument(node, key)]
        given = [argument(node, key) for key in keys]
        if name in ("layer_norm", "rms_norm"):
            follows = axis == Axis(len(shape_of(source)) - 1) and len(argument(node, "normalized_shape")) == 1
            channels.fixed = channels.fixed or f"%{node.name} normalises over them"
        elif name == "prelu" and shape_of(argument(node, "weight")) in ((), (1,)):
            self._put(node, channels, axis)
            return True
        else:
            follows = axis == Axis(1) and name in ("batch_norm", "instance_norm", "prelu")
        if follows:
            self._put(node, channels, axis)
        return follows and self._vectors(channels, *given)

    def _combination(self, node: fx.Node) -> bool:
        """Handle an elementwise operator of several values, whose channels must then share one order."""
        values = [value for value in node.all_input_nodes if shape_of(value)]
        placed, rank = [value for value in values if value in self.found], len(shape_of(node))
        if not placed:
            return False
        first = self._axis(placed[0])
        for value in values:
            shape = shape_of(value)
            axis = first.dimension - rank + len(shape)  # a value of smaller rank lacks the first dimensions
            if value in self.found:
                if len(shape) != rank or self._axis(value) != first or shape[axis] != shape_of(node)[axis]:
                    return False
            elif axis >= 0 and shape[axis] != 1:
                return False
        kept = self.found[placed[0]]
        for value in placed[1:]:
            self._join(kept, self.found[value])
        self._put(node, kept, first)
        return True

    def _join(self, kept: Channels, gone: Channels) -> None:
        if kept is not gone:
            kept.take(gone)
            self.found |= dict.fromkeys(gone.values, kept)


def written_together(program: Program, weights: Sequence[str]) -> list[tuple[str, ...]]:
    """Group ``weights`` whose outputs share one order of channels; every other weight is a group of its own. Keeps the given order."""
    found: dict[str, tuple[str, ...]] = {name: (name,) for name in weights}
    for channels in channel_sets(program):
        members = tuple(name for name in weights if name in channels.writers)
        found |= dict.fromkeys(members, members)
    return list(dict.fromkeys(found[name] for name in weights))
