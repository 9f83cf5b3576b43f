"""Channels: which layers write and read values whose channels must stand in one order, and whether the order and the number are free.

The order of a layer's outputs is free where all that reads them is known to follow: weights of the next layers (their columns), of batch
norms, layer norms and depthwise convolutions. Values that are added to each other share their order, and so do the layers that write them.
Where the order is free, channels may also go, but for norms over them and sizes that are asked for.
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
    """Values of one order of channels.

    Attributes:
        writers: weights [O, I, *K] whose outputs they are, in the order of the parameters.
        readers: (weight [O, I, *K], run) whose inputs they are; a channel is ``run`` consecutive inputs, more than one after a flatten.
        vectors: parameters and buffers with one row per channel: biases, norms, depthwise kernels.
        pinned: why the order cannot change, or None.
        fixed: why their number cannot change though the order can, or None.
        values: nodes that carry them, in graph order, with the axis they stand at.
        layers: nodes of the layers that write them, then of those that read them, in graph order.
        depthwise: convolutions among ``values``.
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
        """Make the values of ``other`` ones of this order."""
        for name in ("writers", "readers", "vectors", "written_by", "read_by", "depthwise"):
            getattr(self, name).extend(getattr(other, name))
        self.pinned, self.fixed = self.pinned or other.pinned, self.fixed or other.fixed
        self.values |= other.values


def channel_sets(program: Program, phase: str = "eval") -> tuple[Channels, ...]:
    """The values of a phase by their order of channels; those no layer writes are left out."""
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
        """The size of a dimension: it counts the channels where they are this dimension."""
        value = input_of(node)
        if value in self.found and argument(node, "dim") % len(shape_of(value)) == self._axis(value).dimension:
            self.found[value].fixed = f"%{node.name} asks for their number"

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
        """Let the channels' order decide that of parameters and buffers, each read only here; whether all are."""
        names: list[str] = []
        for value in values:
            name = self._source(value, buffers=True)
            if value is not None and (name is None or self.uses[id(self.program.tensor(name))] > 1):
                return False
            names += [] if name is None else [name]
        channels.vectors += names
        return True

    def _source(self, value: object, *, buffers: bool = False) -> str | None:
        """The name of the parameter (or buffer) that an argument reads, through its mask."""
        node = source_of(value)
        tensor = self.tensors.get(str(node.target)) if node is not None else None
        return str(node.target) if node is not None and tensor is None and buffers else self.names.get(id(tensor))

    # --- what lies between

    def _moved(self, node: fx.Node) -> bool:
        """An operator of one value that leaves channels apart."""
        source = input_of(node) if node.op == "call_function" else None
        if not isinstance(source, fx.Node) or source not in self.found:
            return False
        axis = axis_after(node, self._axis(source))
        if axis is not None:
            self._put(node, self.found[source], axis)
        return axis is not None

    def _norm(self, node: fx.Node) -> bool:
        """One vector per channel: of a batch norm, an instance norm or a PReLU; or a norm over the channels of each position."""
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
        """An operator of several values, position by position: their channels have one order, which the others do not see."""
        values = [value for value in node.all_input_nodes if shape_of(value)]
        placed, rank = [value for value in values if value in self.found], len(shape_of(node))
        if not placed:
            return False
        first = self._axis(placed[0])
        for value in values:
            shape = shape_of(value)
            axis = first.dimension - rank + len(shape)  # a smaller value does not have the first dimensions
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
    """``weights`` in tuples: those whose outputs have one order of channels, and each other alone, in the order given."""
    found: dict[str, tuple[str, ...]] = {name: (name,) for name in weights}
    for channels in channel_sets(program):
        members = tuple(name for name in weights if name in channels.writers)
        found |= dict.fromkeys(members, members)
    return list(dict.fromkeys(found[name] for name in weights))
