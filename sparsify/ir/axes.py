"""Axes: where the entries of one dimension of a value are after an operator that keeps them apart."""

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
    """A dimension, from the front, and how many consecutive entries of it each of the followed things takes."""

    dimension: int
    run: int = 1


def shape_of(value: object) -> Shape:
    """The shape that the trace recorded for a node; empty where it is not known, and for numbers."""
    spec = value.meta.get("spec") if isinstance(value, fx.Node) else None
    return spec.shape if isinstance(spec, TensorSpec) else ()


def axis_after(node: fx.Node, axis: Axis) -> Axis | None:
    """Where an axis of the value of ``node`` is in its result; None where it is mixed with others or with itself, or nobody knows.

    Args:
        node: an operator of one value: elementwise, pooling, a reduction, or one that moves dimensions.
        axis: of that value.
    """
    before, after, found = shape_of(input_of(node)), shape_of(node), kind_of(node)
    if not before or not 0 <= axis.dimension < len(before):
        return None
    if found in ELEMENTWISE:
        return axis if before == after else None
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
    """The dimension of its value that each dimension of a permute, transpose or the like is, asked of the operator itself."""
    turned = apply(node, lambda _: torch.empty(*range(1, rank + 1), device="meta"))
    return [size - 1 for size in turned.shape]


def _reshaped(before: Shape, after: Shape, axis: Axis) -> Axis | None:
    """[.., C, *K] -> [.., C * prod(K'), ..]: what stands before the axis stays, and the axis takes whole dimensions after it, if any."""
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
