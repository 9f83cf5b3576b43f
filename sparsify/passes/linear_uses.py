"""Finds how linear layers are called at the usual sizes of a program, and for which of them a grouped form pays."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from torch import fx

from sparsify.deployment.linear_times import (
    BRANCH,
    MANY,
    Use,
    dense_time,
    follow_time,
    grouped_time,
    norm_time,
    turn_time,
)
from sparsify.deployment.packing import Packing
from sparsify.errors import PassError
from sparsify.ir import Program, TensorSpec
from sparsify.ir.dimensions import BATCH, value_of
from sparsify.ir.feature_major import kept_by
from sparsify.ir.traits import argument

LEAST_GAIN = 1.1
"""Least predicted speed-up for which layers that share their transposes are grouped."""
SIZES_HELP = f"sizes the program mostly runs at, such as N=1,T=64, for the cost model; without one, N={MANY}, and others as in the example"
_SIZE = re.compile(r"(\w+)=(\d+)")


def check_sizes(texts: Sequence[str]) -> None:
    """Check the spelling of sizes.

    Raises:
        PassError: If a text is not of the form NAME=SIZE with a size of at least 1.
    """
    for text in texts:
        found = _SIZE.fullmatch(text)
        if found is None or int(found[2]) < 1:
            raise PassError(f"a size is written NAME=SIZE, as in N=1, and is at least 1; found {text!r}.")


def sizes_of(program: Program, texts: Sequence[str]) -> dict[str, int]:
    """Return the size of each varying dimension: as given, else `MANY` for the batch, and that of the example for others.

    Raises:
        PassError: If a text names something that is not a varying dimension.
    """
    given = {name: int(size) for name, size in (text.split("=") for text in texts)}
    if unknown := next((name for name in given if name not in program.sizes), None):
        varying = f"those of this program are {', '.join(program.sizes)}" if program.sizes else "this program has none"
        raise PassError(f"sizes name {unknown}, which is not a dimension that varies; {varying}. Leave it out.")
    return {**program.sizes, BATCH: MANY, **given}


def use_of(program: Program, node: fx.Node, sizes: Mapping[str, int], *, picks: bool = True) -> Use | None:
    """Return how a linear layer is called; None if its shape is not known."""
    spec = node.meta.get("spec")
    if not isinstance(spec, TensorSpec) or len(spec.shape) < 2:
        return None
    rows = 1
    for size in spec.shape[:-1]:
        count = value_of(size, sizes)
        if count is None:
            return None
        rows *= count
    return Use(max(rows, 1), len(spec.shape) == 2, picks, program.dynamic_batch)


def paying(
    program: Program, packings: Mapping[fx.Node, Packing], uses: Mapping[fx.Node, Use]
) -> tuple[set[fx.Node], dict[fx.Node, float]]:
    """Find the layers whose grouped form is predicted to be faster, including the transposes that it needs.

    Layers between which values stay feature-major are judged together: what they gain, against the cost of the transposes at their ends and
    the additional time of layer norms and dense layers between them.

    Args:
        program: a deployed program.
        packings: packings of the layers that may be grouped.
        uses: how these layers are called. A layer that is missing here has no predicted time; layers that are judged together are grouped
            if none of them has one.

    Returns:
        The layers to group; and for each other layer the predicted speed-up of the layers that it is judged with.
    """
    chains = _Chains()
    for node in program.phases["eval"].graph.nodes:
        _walk(node, packings, uses, chains)
    for node in chains.made:
        if any(user not in chains.made for user in node.users):
            chains.pay(node, turn_time(_like(node, uses, chains.layers[node]), _features(node)))
    found, slower = set[fx.Node](), dict[fx.Node, float]()
    for members in chains.groups():
        layers = [node for node in members if node in packings]
        dense = sum(_dense(node, packings[node], uses) for node in layers if node in uses)
        grouped = sum(_grouped(packings[node], uses[node]) for node in layers if node in uses)
        grouped += sum(chains.costs.get(node, 0.0) for node in members)
        if any(_picked(packings[node], uses[node]) for node in layers if node in uses):
            grouped += BRANCH
        gain = dense / grouped if dense else LEAST_GAIN
        if gain >= LEAST_GAIN:
            found.update(layers)
        else:
            slower |= dict.fromkeys(layers, gain)
    return found, slower


@dataclasses.dataclass
class _Chains:
    """Values that would be feature-major, joined where no turn lies between them.

    Attributes:
        layers: by value, a grouped layer that has the same rows.
        made: the values that are computed in that form; the others are turned for a reader.
        parents: by value, another of the same chain.
        costs: microseconds by value.
    """

    layers: dict[fx.Node, fx.Node] = dataclasses.field(default_factory=dict)
    made: set[fx.Node] = dataclasses.field(default_factory=set)
    parents: dict[fx.Node, fx.Node] = dataclasses.field(default_factory=dict)
    costs: dict[fx.Node, float] = dataclasses.field(default_factory=dict)

    def root(self, node: fx.Node) -> fx.Node:
        while (parent := self.parents.setdefault(node, node)) is not node:
            node = parent
        return node

    def join(self, node: fx.Node, other: fx.Node) -> None:
        self.parents[self.root(node)] = self.root(other)

    def pay(self, node: fx.Node, cost: float) -> None:
        self.costs[node] = self.costs.get(node, 0.0) + cost

    def make(self, node: fx.Node, sources: Sequence[fx.Node]) -> None:
        """Add a value that is computed from others that are feature-major."""
        self.made.add(node)
        self.layers[node] = self.layers[sources[0]]
        for source in sources:
            self.join(source, node)

    def groups(self) -> list[list[fx.Node]]:
        found: dict[fx.Node, list[fx.Node]] = {}
        for node in self.parents:
            found.setdefault(self.root(node), []).append(node)
        return list(found.values())


def _walk(node: fx.Node, packings: Mapping[fx.Node, Packing], uses: Mapping[fx.Node, Use], chains: _Chains) -> None:
    """Add a node to the chains if its value would be feature-major."""
    if node in packings:
        source = argument(node, "input")
        _turn([source], node, uses, chains)
        chains.make(node, [source])
        return
    kept, given = kept_by(node, chains.layers), node.all_input_nodes
    if kept == "pointwise":
        _turn(given, next(chains.layers[value] for value in given if value in chains.layers), uses, chains)
        chains.make(node, given)
    elif kept in ("linear", "layer-norm"):
        source = argument(node, "input")
        chains.make(node, [source])
        use = _like(node, uses, chains.layers[node])
        linear = kept == "linear"
        chains.pay(
            node, follow_time(use, _features(node), _features(source)) if linear else norm_time(use, _features(node))
        )


def _turn(values: Sequence[fx.Node], layer: fx.Node, uses: Mapping[fx.Node, Use], chains: _Chains) -> None:
    for value in values:
        if value not in chains.layers:
            chains.layers[value] = layer
            chains.pay(value, turn_time(_like(value, uses, layer), _features(value)))


def _features(node: fx.Node) -> int:
    size = node.meta["spec"].shape[-1]
    return size if isinstance(size, int) else 1


def _like(node: fx.Node, uses: Mapping[fx.Node, Use], layer: fx.Node) -> Use:
    return uses.get(node) or uses.get(layer) or Use()


def _dense(node: fx.Node, packing: Packing, uses: Mapping[fx.Node, Use]) -> float:
    return dense_time(uses[node], packing.rows * packing.groups, _features(argument(node, "input")))


def _grouped(packing: Packing, use: Use) -> float:
    return grouped_time(use, packing.rows * packing.groups, packing.groups, packing.inputs.shape[1], packing.chunk)


def _picked(packing: Packing, use: Use) -> bool:
    return use.open and use.is_picked(packing.inputs.numel(), packing.chunk)
