"""Axes: follow the entries of one dimension of a value through operators that do not mix them."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import fx

from sparsify.ir.nodes import TensorSpec
from sparsify.ir.traits import ELEMENTWISE, apply, argument, dimensions, has_argument, input_of, kind_of, traits

Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Axis:
    """A dimension, counted from the front, and how many consecutive entries of it belong to each followed entry (such as a channel)."""

    dimension: int
    run: int = 1


def shape_of(value: object) -> Shape:
    """Return the shape that the trace recorded for a node; an empty one if it is unknown or the value is a number."""
    spec = value.meta.get("spec") if isinstance(value, fx.Node) else None
    return spec.shape if isinstance(spec, TensorSpec) else ()


def axis_after(node: fx.Node, axis: Axis) -> Axis | None:
    """Find an axis of the input of ``node`` in its output; None if its entries are mixed with each other or with others, or if unknown.

    Args:
        node: an operator with one input tensor: elementwise, neurons, pooling, a reduction, or one that moves dimensions.
        axis: an axis of that input.
    """
    before, after, found = shape_of(input_of(node)), shape_of(node), kind_of(node)
    if not before or not 0 <= axis.dimension < len(before):
        return None
    if found in ELEMENTWISE:
        return axis if before == after else None
    if found in ("neuron", "steps"):  # only the first dimension changes: the batch, or the batch of each step
        return axis if axis.dimension > 0 and before[1:] == after[1:] else None
    if found == "pool":
        spatial = re.search(r"(\d)d", traits(node).name)
        return axis if spatial is not None and axis.dimension < len(before) - int(spatial[1]) else None
    if found == "pad":
        return axis if axis.dimension < len(before) - len(argument(node, "pad")) // 2 else None
    if found == "reshape":
        return _reshaped(before, after, axis)
    if found == "turn":
        return Axis(order_of(node, len(before)).index(axis.dimension), axis.run)
    if found == "reduction" and has_argument(node, "dim"):
        gone = dimensions(argument(node, "dim"), len(before))
        return _without(gone, axis, kept=bool(has_argument(node, "keepdim") and argument(node, "keepdim")))
    if traits(node).name in ("select", "slice") and has_argument(node, "dim"):
        return _without([int(argument(node, "dim")) % len(before)], axis, kept=traits(node).name == "slice")
    return None


def _without(gone: list[int], axis: Axis, *, kept: bool) -> Axis | None:
    if axis.dimension in gone:
        return None
    return axis if kept else Axis(axis.dimension - sum(d < axis.dimension for d in gone), axis.run)


def order_of(node: fx.Node, rank: int) -> list[int]:
    """Return, for each output dimension of a permute or transpose, the input dimension it comes from; found by running the operator."""
    turned = apply(node, lambda _: torch.empty(*range(1, rank + 1), device="meta"))
    return [size - 1 for size in turned.shape]


def _reshaped(before: Shape, after: Shape, axis: Axis) -> Axis | None:
    """Follow the axis through a reshape [.., C, *K] -> [.., C * prod(K'), ..].

    The dimensions before the axis must stay, and the axis may only absorb whole dimensions after it.
    """
    size = before[axis.dimension]
    lead = [s for s in before[: axis.dimension] if s != 1]
    places = [i for i, s in enumerate(after) if s != 1]
    if size == 1 or len(places) <= len(lead) or [after[i] for i in places[: len(lead)]] != lead:
        return None
    made = after[places[len(lead)]]
    if made == size:
        return Axis(places[len(lead)], axis.run)
    if not isinstance(made, int) or not isinstance(size, int) or made % size:
        return None
    return Axis(places[len(lead)], axis.run * (made // size))
