"""How a parameter comes to its products: which operators leave its positions where they are, and which make another weight of it."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from sparsify.ir.nodes import MASK_OPERATORS, GradientTap, TensorSpec, apply_random_mask
from sparsify.ir.products import product_kind

if TYPE_CHECKING:
    from sparsify.ir.program import Program

aten = torch.ops.aten

SAME = (aten.to.dtype, aten.contiguous.default, aten.alias.default, aten.clone.default, aten.detach.default)
"""Operators that give the weight as it is."""
TURNED = (aten.t.default, aten.transpose.int, aten.permute.default, aten.numpy_T.default)
"""Operators that give it with its dimensions in another order."""
_CUT_OR_JOINED = {
    "_unsafe_view", "cat", "chunk", "concat", "concatenate", "expand", "expand_as", "flatten", "getitem", "hstack",
    "index_select", "mT", "movedim", "narrow", "repeat", "reshape", "select", "slice", "split", "split_with_sizes",
    "squeeze", "stack", "swapaxes", "swapdims", "tensor_split", "to", "_to_copy", "unbind", "unflatten", "unsqueeze",
    "view", "view_as", "vstack",
}  # fmt: skip
"""Operators after which the weight's positions are there in another shape, or beside those of another weight."""
_SCALED = {
    "mul": (0, 1),
    "div": (0,),
    "neg": (0,),
    "dropout": (0,),
    "_weight_norm": (0,),
    "_weight_norm_interface": (0,),
}
"""Operators that multiply each position by something, with the arguments they do it to."""


@dataclass(frozen=True)
class Read:
    """A product that reads a weight.

    Attributes:
        kind: of product, as in `sparsify.ir.WeightSite`.
        user: the product.
        value: what it reads.
        share: how much of ``value`` is of the weight, in (0, 1].
    """

    kind: str
    user: fx.Node
    value: fx.Node
    share: float


@dataclass
class Reads:
    """All that happens to a weight.

    Attributes:
        products: those that read it with every position where it was, or somewhere else, but multiplied by nothing but scales.
        direct: whether all of them read it in its own shape and order.
        normalised: whether an operator on the way divides it by a norm of its own.
        changes: operators that make another weight of it, in graph order, with whether a product comes of that.
        others: operators that read it beside activations, and are no products.
    """

    products: list[Read] = field(default_factory=list)
    direct: bool = True
    normalised: bool = False
    changes: list[tuple[fx.Node, bool]] = field(default_factory=list)
    others: list[fx.Node] = field(default_factory=list)


_PRIVATE = ("linear", "conv", "conv-transpose", "matmul", "embedding")
_VIEWS = (aten.to.dtype, aten.contiguous.default, aten.alias.default, *TURNED, *MASK_OPERATORS, apply_random_mask)


def is_tap(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node calls a `GradientTap`."""
    return node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), GradientTap)


def from_inputs(module: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose values depend on inputs; all others are made of state, once for all examples."""
    found: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.op == "placeholder" or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def for_outputs(module: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose values come to an output."""
    found: set[fx.Node] = set()
    for node in reversed(module.graph.nodes):
        if node.op == "output" or any(user in found for user in node.users):
            found.add(node)
    return found


def reads(module: fx.GraphModule, nodes: Iterable[fx.Node], live: set[fx.Node]) -> Reads:
    """Follow a weight from the nodes that read the parameter to its products.

    Args:
        module: a phase.
        nodes: those that read the parameter, under any of its names.
        live: the nodes that are computed for every example.
    """
    found, seen = Reads(), set[tuple[fx.Node, fx.Node]]()
    waiting = [(user, node, 1.0, True) for node in nodes for user in node.users]
    while waiting:
        user, value, share, direct = waiting.pop(0)
        if (user, value) in seen:
            continue
        seen.add((user, value))
        carried = _carried(module, user, value)
        kind = product_kind(user, value)
        if carried is not None and (user not in live or carried.moves_only):
            found.normalised |= "_weight_norm" in str(user.target)
            share = share * _joined(user, value)
            waiting.extend((next_, user, share, direct and carried.is_direct) for next_ in user.users)
        elif kind is not None and (user in live or kind in ("embedding", "embedding-bag")):
            found.products.append(Read(kind, user, value, share))
            found.direct &= direct
        elif user in live:
            found.others.append(user)
        elif user.op != "output":
            found.changes.append((user, _comes_to_a_product(user)))
    return found


@dataclass(frozen=True)
class _Carried:
    is_direct: bool
    moves_only: bool
    """Whether the operator reads nothing beside the weight that could change it."""


def _carried(module: fx.GraphModule, user: fx.Node, value: fx.Node) -> _Carried | None:
    """How an operator hands on the weight with a zero for every zero, or None where it does not."""
    target: Any = user.target
    if target in (*SAME, *MASK_OPERATORS) or target is apply_random_mask or is_tap(module, user):
        return _Carried(is_direct=True, moves_only=True) if user.args[0] is value else None
    if target in TURNED:
        return _Carried(is_direct=False, moves_only=True)
    name = getattr(getattr(target, "overloadpacket", target), "__name__", "").rsplit(".", 1)[-1]
    if name in _CUT_OR_JOINED and (target is operator.getitem or isinstance(target, torch._ops.OpOverload)):
        return _Carried(
            is_direct=False, moves_only=name not in ("cat", "concat", "concatenate", "stack", "hstack", "vstack")
        )
    if name in _SCALED and any(user.args[i] is value for i in _SCALED[name] if i < len(user.args)):
        kept = name.startswith("_weight_norm") or _count(user) == _count(value)
        return _Carried(is_direct=True, moves_only=False) if kept else None
    return None


def _joined(user: fx.Node, value: fx.Node) -> float:
    """The share of a joined weight that comes of ``value``; 1 for every other operator."""
    whole, part = _count(user), _count(value)
    joined = "cat" in str(user.target) or "stack" in str(user.target)
    return part / whole if joined and whole and part else 1.0


def _count(node: fx.Node) -> int | None:
    spec = node.meta.get("spec")
    sizes = spec.shape if isinstance(spec, TensorSpec) else ()
    return math.prod(size for size in sizes if isinstance(size, int)) if spec is not None else None


def _comes_to_a_product(node: fx.Node) -> bool:
    """Whether a product reads what is made of a node, through any operators."""
    waiting, seen = [node], {node}
    while waiting:
        value = waiting.pop()
        for user in value.users:
            if product_kind(user, value) is not None:
                return True
            if user not in seen:
                seen.add(user)
                waiting.append(user)
    return False


def consumers(module: fx.GraphModule, node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """(consumer, the value it reads) of a weight, looked up through masks, taps and views."""
    for user in node.users:
        if user.target in _VIEWS or is_tap(module, user):
            yield from consumers(module, user)
        else:
            yield user, node


def gradient_is_private(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether every consumer of a weight's value is a product whose backward makes the gradient for that value and nothing else."""
    return all(product_kind(user, value) in _PRIVATE for user, value in consumers(module, node))


def multiplied_values(program: Program, phase: str, parameter: str) -> list[Tensor]:
    """What the products of a phase multiply of a parameter, where that is computed from state and nothing else.

    Args:
        program: of any stage.
        phase: ``train`` or ``eval``.
        parameter: qualified name.
    """
    module, tensors = program.phases[phase], dict(program.named_parameters(remove_duplicate=False))
    weight, live = tensors[parameter], from_inputs(module)
    nodes = [n for n in module.graph.nodes if n.op == "get_attr" and tensors.get(n.target) is weight]
    values = dict.fromkeys(read.value for read in reads(module, nodes, live).products if read.value not in live)
    known: dict[fx.Node, Any] = {}

    def value_of(node: fx.Node) -> Any:
        if node not in known:
            given = [fx.map_arg(part, value_of) for part in (node.args, node.kwargs)]
            known[node] = (
                program.tensor(str(node.target)) if node.op == "get_attr" else node.target(*given[0], **given[1])  # type: ignore[operator, misc]
            )
        return known[node]

    with torch.no_grad():
        return [value_of(node) for node in values]
