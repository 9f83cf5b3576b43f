"""Layers: linear layers and convolutions with their arguments by name, and code that replaces their weights or adds a bias."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from sparsify.ir import surgery
from sparsify.ir.axes import shape_of
from sparsify.ir.program import Program
from sparsify.ir.traits import argument, input_of, kind_of

KINDS = ("linear", "conv")


@dataclass(frozen=True)
class Layer:
    """A linear layer or a convolution.

    Attributes:
        node: the node that calls the operator.
        kind: ``linear`` or ``conv``.
        input: the node whose value it reads.
        weight: its weight argument [O, I / groups, *K]: a parameter, a masked parameter, or another node that computes it.
        bias: its bias argument [O], or None.
        groups: number of groups of a convolution; 1 for a linear layer.
        axis: dimension of its output that holds the O outputs, counted from the front.
    """

    node: fx.Node
    kind: str
    input: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    groups: int
    axis: int

    @property
    def is_conv(self) -> bool:
        """Whether it is a convolution."""
        return self.kind == "conv"

    @property
    def kernel(self) -> tuple[int, ...]:
        """Sizes of the kernel of a convolution."""
        return tuple(int(size) for size in shape_of(self.weight)[2:])

    def spatial(self, name: str) -> tuple[int, ...]:
        """``stride`` or ``dilation`` of a convolution, one number per dimension."""
        value = argument(self.node, name)
        listed = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        return listed * len(self.kernel) if len(listed) == 1 else listed

    @property
    def pads(self) -> tuple[int, ...]:
        """Return the zeros that a convolution adds before each dimension, then those after each, for every spelling of padding."""
        if argument(self.node, "padding") == "same":
            total = [d * (k - 1) for d, k in zip(self.spatial("dilation"), self.kernel, strict=True)]
            return (*(t // 2 for t in total), *(t - t // 2 for t in total))
        return (0,) * 2 * len(self.kernel) if argument(self.node, "padding") == "valid" else self.spatial("padding") * 2


def layer_of(node: fx.Node) -> Layer | None:
    """Return a node as a layer; None if it is not one or its shapes are unknown."""
    found = kind_of(node)
    if found not in KINDS:
        return None
    source, weight, bias = (argument(node, name) for name in ("input", "weight", "bias"))
    rank, wide = len(shape_of(node)), len(shape_of(weight))
    axis = rank - wide + 1 if found == "conv" else rank - 1
    if not isinstance(source, fx.Node) or not isinstance(weight, fx.Node) or not wide or not 0 <= axis < rank:
        return None
    return Layer(node, found, source, weight, bias, int(argument(node, "groups")) if found == "conv" else 1, axis)


def layers(program: Program, phase: str = "eval", kinds: Sequence[str] = KINDS) -> Iterator[Layer]:
    """Yield the layers of a phase in graph order."""
    for node in list(program.phases[phase].graph.nodes):
        found = layer_of(node)
        if found is not None and found.kind in kinds:
            yield found


def source_of(value: object) -> fx.Node | None:
    """Return the ``get_attr`` node that an argument comes from, looking through masks and taps."""
    while isinstance(value, fx.Node) and (kind_of(value) == "mask" or value.op == "call_module"):
        value = input_of(value)
    return value if isinstance(value, fx.Node) and value.op == "get_attr" else None


def reads_of(program: Program, phase: str = "eval") -> dict[str, int]:
    """Count, by parameter name, the nodes of a phase that read its tensor under any of its names."""
    tensors = dict(program.named_parameters(remove_duplicate=False))
    counts: dict[int, int] = {}
    for node in program.phases[phase].graph.nodes:
        if node.op == "get_attr" and str(node.target) in tensors:
            counts[id(tensors[str(node.target)])] = counts.get(id(tensors[str(node.target)]), 0) + len(node.users)
    return {name: counts.get(id(tensor), 0) for name, tensor in tensors.items()}


def own_parameter(program: Program, value: object, reads: dict[str, int]) -> Tensor | None:
    """Return the parameter that an argument reads directly, or None if other nodes read it too."""
    if not isinstance(value, fx.Node) or value.op != "get_attr" or reads.get(str(value.target)) != 1:
        return None
    return program.get_parameter(str(value.target))


def tensor_of(program: Program, value: Any) -> Tensor:
    """Return the parameter or buffer that an argument reads, detached."""
    return program.tensor(str(value.target)).detach()


def set_parameter(program: Program, value: Any, values: Tensor) -> None:
    """Replace the parameter that an argument reads by one of any shape."""
    resize(program, str(value.target), values)


def resize(program: Program, name: str, values: Tensor, phase: str = "eval") -> None:
    """Replace a parameter or buffer by one of any shape, for every node of a phase that reads it."""
    old = program.tensor(name)
    nodes = [
        n for n in program.phases[phase].graph.nodes if n.op == "get_attr" and program.tensor(str(n.target)) is old
    ]
    surgery.replace_parameter(program, name, values)
    for node in nodes:
        node.meta["spec"] = surgery.spec_of(values, node.name)


def take_outputs(program: Program, layer: Layer, index: Tensor) -> None:
    """Keep only the outputs ``index`` of a layer, in that order."""
    for value in (layer.weight, layer.bias):
        if value is not None:
            old = tensor_of(program, value)
            set_parameter(program, value, old[index.to(old.device)])
    layer.node.meta["spec"] = surgery.respec(layer.node, layer.axis, len(index))


def add_bias(program: Program, phase: str, layer: fx.Node, values: Tensor) -> None:
    """Give a convolution or linear node without a bias a new bias parameter [O], named after its weight."""
    weight = source_of(argument(layer, "weight"))
    assert weight is not None
    name = f"{str(weight.target).rpartition('.')[0]}.bias".removeprefix(".")
    taken = {n for n, _ in (*program.named_parameters(), *program.named_buffers())}
    name = name if name not in taken else f"{name}_folded"
    surgery.add_state(program, name, nn.Parameter(values))
    surgery.set_argument(layer, "bias", surgery.state_node(program, phase, name, before=layer))
