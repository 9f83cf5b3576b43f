"""Follows a parameter to its products: which operators on the way keep its positions, and which compute another weight from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from sparsify.ir.nodes import GradientTap, TensorSpec
from sparsify.ir.products import product_kind
from sparsify.ir.traits import apply, argument, input_of, keeps_zero, kind_of, traits, written

if TYPE_CHECKING:
    from sparsify.ir.program import Program

_CARRIED = ("turn", "reshape", "cut", "join")
"""Kinds of operators that keep the weight's positions, but in another shape, or joined with another weight."""
_SCALED = {"mul": ("self", "other"), "div": ("self",), "_weight_norm": ("v",), "_weight_norm_interface": ("v",)}
"""Operators that scale each position, with the arguments that they scale."""
_VIEWS = ("same", "turn", "mask")


@dataclass(frozen=True)
class Read:
    """A product that reads a weight.

    Attributes:
        kind: kind of the product, as in `sparsify.ir.WeightSite`.
        user: the node of the product.
        value: the node that it reads.
        share: the share of ``value`` that comes from the weight, in (0, 1].
    """

    kind: str
    user: fx.Node
    value: fx.Node
    share: float


@dataclass
class Reads:
    """Everything that reads a weight.

    Attributes:
        products: products that read its positions, possibly moved or scaled, but not otherwise changed.
        direct: whether all products read it in its own shape and order.
        normalised: whether an operator on the way divides it by its own norm.
        changes: operators that compute another weight from it, in graph order, each with whether a product reads the result.
        others: operators that read it together with activations but are not products.
    """

    products: list[Read] = field(default_factory=list)
    direct: bool = True
    normalised: bool = False
    changes: list[tuple[fx.Node, bool]] = field(default_factory=list)
    others: list[fx.Node] = field(default_factory=list)


def is_tap(module: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether the node calls a `GradientTap`."""
    return node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), GradientTap)


def from_inputs(module: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes whose values depend on inputs; all others depend only on state and are computed once for all examples."""
    found: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.op == "placeholder" or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def for_outputs(module: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes whose values influence an output."""
    found: set[fx.Node] = set()
    for node in reversed(module.graph.nodes):
        if node.op == "output" or any(user in found for user in node.users):
            found.add(node)
    return found


def reads(module: fx.GraphModule, nodes: Iterable[fx.Node], live: set[fx.Node]) -> Reads:
    """Follow a weight from the nodes that read the parameter to its products.

    Args:
        module: a phase.
        nodes: the nodes that read the parameter, under any of its names.
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
            found.normalised |= kind_of(user) == "weight-norm"
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
    """Whether the operator reads nothing besides the weight that could change it; False if it scales the weight or joins another to it."""


def _carried(module: fx.GraphModule, user: fx.Node, value: fx.Node) -> _Carried | None:
    """Return how an operator passes the weight on if zeros stay zeros; None if they do not."""
    found, name = kind_of(user), traits(user).name
    if found in ("same", "mask") or is_tap(module, user):
        return _Carried(is_direct=True, moves_only=True) if input_of(user) is value else None
    if found in _CARRIED:
        return _Carried(is_direct=False, moves_only=found != "join")
    scaled = (argument(user, key) for key in _SCALED.get(name, ()) if not any(written(user)))
    if any(given is value for given in scaled) or keeps_zero(user):
        kept = found == "weight-norm" or _count(user) == _count(value)
        return _Carried(is_direct=True, moves_only=False) if kept else None
    return None


def _joined(user: fx.Node, value: fx.Node) -> float:
    """Return the share of a joined weight that comes from ``value``; 1 for operators that do not join."""
    whole, part = _count(user), _count(value)
    return part / whole if kind_of(user) == "join" and whole and part else 1.0


def _count(node: fx.Node) -> int | None:
    spec = node.meta.get("spec")
    sizes = spec.shape if isinstance(spec, TensorSpec) else ()
    return math.prod(size for size in sizes if isinstance(size, int)) if spec is not None else None


def _comes_to_a_product(node: fx.Node) -> bool:
    """Return whether a product reads a value that is computed from a node by any operators."""
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


def consumers(module: fx.GraphModule, node: fx.Node) -> Iterator[fx.Node]:
    """Yield the readers of a weight, looking through masks, taps and views."""
    for user in node.users:
        if kind_of(user) in _VIEWS or is_tap(module, user):
            yield from consumers(module, user)
        else:
            yield user


def multiplied_values(program: Program, phase: str, parameter: str) -> list[Tensor]:
    """Return the tensors, computed from a parameter and other state only, that the products of a phase multiply by.

    Args:
        program: of any stage.
        phase: ``train`` or ``eval``.
        parameter: qualified name of the parameter.
    """
    module, tensors = program.phases[phase], dict(program.named_parameters(remove_duplicate=False))
    weight, live = tensors[parameter], from_inputs(module)
    nodes = [n for n in module.graph.nodes if n.op == "get_attr" and tensors.get(n.target) is weight]
    values = dict.fromkeys(read.value for read in reads(module, nodes, live).products if read.value not in live)
    known: dict[fx.Node, Any] = {}

    def value_of(node: fx.Node) -> Any:
        if node not in known:
            known[node] = program.tensor(str(node.target)) if node.op == "get_attr" else apply(node, value_of)
        return known[node]

    with torch.no_grad():
        return [value_of(node) for node in values]
