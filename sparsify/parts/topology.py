"""Topology: how masks change from round to round. Counts are exact, and ties go to lower flat indices."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sparsify.arguments import checked_fields
from sparsify.errors import RecipeError
from sparsify.parts.allocation import Allocation, Layers
from sparsify.parts.patterns import Balanced, Pattern, Unstructured
from sparsify.parts.schedules import Schedule, Trigger, at, constant
from sparsify.parts.scores import Score, magnitude
from sparsify.parts.top import ones, top

UNSTRUCTURED = Unstructured()
LazyTensor = Tensor | Callable[[], Tensor]
"""A tensor, or a function that makes it on demand, so that two large scores need not be in memory at once."""


class Exchange(Protocol):
    """A rule that makes one weight's new mask in a round, with the same number of active positions.

    ``last`` is True for the last weight of the program.
    """

    def __call__(
        self, mask: Tensor, drop_score: LazyTensor, grow_score: LazyTensor, fraction: float, *, last: bool
    ) -> Tensor: ...


@checked_fields(RecipeError)
@dataclass(frozen=True)
class Budgets:
    """How many positions each layer has after a round: the way from one allocation of a density to another.

    A layer to which the first allocation gives a positions and the last b has ``b + (a - b) * left(step)``, rounded to whole units.
    Allocations are given the shapes and patterns of weights without their values, so that budgets depend on the step only; one that ranks
    values is refused by its own AllocationError.

    Attributes:
        initial_density, density: at the start and at the end, in (0, 1].
        initial_allocation, allocation: how these two are split over layers.
        left: the share of the way that is left, by step: 1 at the start, 0 at the end.
    """

    initial_density: float
    density: float
    initial_allocation: Allocation
    allocation: Allocation
    left: Schedule

    def density_at(self, step: int) -> float:
        """Return the density of all layers together after a round of ``step``, but for the rounding of each layer."""
        left = self.left(step)
        return self.density if left <= 0 else self.density + (self.initial_density - self.density) * left

    def at(self, step: int, layers: Layers) -> dict[str, int]:
        """Return the number of positions of each layer after a round of ``step``; at both ends exactly what the allocation gives.

        Raises:
            AllocationError: If a density cannot be met, or an allocation needs more than shapes.
        """
        left = self.left(step)
        start, end = self.initial_allocation(layers, self.initial_density), self.allocation(layers, self.density)
        return {name: _between(start[name], end[name], left, layer.unit) for name, layer in layers.items()}


def _between(start: int, end: int, left: float, unit: int) -> int:
    """Return the whole number of units nearest to ``end + (start - end) * left``, within the two, which are exact at the ends."""
    if left >= 1 or left <= 0:
        return start if left >= 1 else end
    found = unit * round((end + (start - end) * left) / unit)
    return min(max(found, min(start, end)), max(start, end))


@checked_fields(RecipeError)
@dataclass(frozen=True)
class DropAndGrow:
    """Each round drops a fraction of the active units of every layer and grows as many, or as many as its budget asks for.

    Attributes:
        drop_by, grow_by: scores. The active units with the lowest drop score are dropped; inactive ones with the highest grow score grow.
        fraction: share of the active units to exchange, in [0, 1], by step.
        when: the steps that end with a round.
        replaces_step: skip the optimizer step on a round (RigL's published code and its paper's algorithm both do).
        regrow_dropped: whether a position dropped in a round may be grown again in the same round; it then keeps its value.
        exchange: a rule of the method that replaces `update`; it also decides about regrowing.
        budgets: how many positions each layer has after a round; None: as many as before.
        restart_regrown: whether a position dropped and grown again in the same round starts at 0 with the optimizer's state cleared, as
            other grown positions do, instead of keeping its value. Not with ``exchange``.
    """

    drop_by: Score
    grow_by: Score
    fraction: Schedule
    when: Trigger
    replaces_step: bool = False
    regrow_dropped: bool = True
    exchange: Exchange | None = None
    budgets: Budgets | None = None
    restart_regrown: bool = False


@checked_fields(RecipeError)
@dataclass(frozen=True)
class Prune:
    """Each round only drops, down to the density of the schedule; ``allocation`` splits that density over the layers."""

    by: Score
    density: Schedule
    when: Trigger
    allocation: Allocation


@checked_fields(RecipeError)
@dataclass(frozen=True)
class InTurn:
    """Several moves. On each step, the moves whose own trigger fires act in this order, on the same gradients."""

    moves: tuple[DropAndGrow | Prune, ...]

    def when(self, step: int) -> bool:
        """Return whether any of the moves acts on this step."""
        return any(move.when(step) for move in self.moves)


Move = DropAndGrow | Prune
Topology = Move | InTurn


def after_dense(move: DropAndGrow, until: int, *, density: float, allocation: Allocation) -> Topology:
    """Train densely up to step ``until``, then keep the largest magnitudes and continue with ``move``; 0: ``move`` from the start."""
    if not until:
        return move
    return InTurn((Prune(magnitude(), constant(density), at(until), allocation), move))


@checked_fields(RecipeError)
@dataclass(frozen=True)
class Rewinding:
    """Go back to an early state and train again with the current masks (Frankle et al. 2019, arXiv:1903.01611).

    Attributes:
        save_at: number of steps after which the state is saved; 0: before the first step.
        at: steps, in ascending order. Training goes back after each of them, and after its round.
        weights: True: parameters and buffers go back too. False: only the optimizer's state and the learning rate (Renda et al. 2020,
            arXiv:2003.02389).
    """

    save_at: int
    at: tuple[int, ...]
    weights: bool = True

    def position(self, step: int, total: int) -> tuple[int, int]:
        """Return where a learning-rate schedule stands after ``step`` of ``total`` steps.

        Returns:
            The number of steps since training last went back, and the length in steps of this stretch of training.
        """
        level = bisect.bisect_right(self.at, step)
        end = self.at[level] if level < len(self.at) else total
        shift = 0 if level == 0 else self.at[level - 1] - self.save_at
        return step - shift, end - shift


def drop(mask: Tensor, score: Tensor, n: int, *, pattern: Pattern = UNSTRUCTURED) -> Tensor:
    """Deactivate the ``n`` active units with the lowest score.

    Args:
        mask: bool, [O, I, *K]; True = active.
        score: float, the shape of ``mask``. Only active positions are read.
        n: how many units to drop, 0 <= n <= active units.
        pattern: what a unit is.

    Returns:
        A new bool mask with exactly ``n`` fewer active units.

    Raises:
        ValueError: If ``n`` exceeds the active count.
    """
    active = pattern.reduce(mask)
    count = ones(active)
    if not 0 <= n <= count:
        raise ValueError(f"cannot drop {n} of {count} active units")
    return pattern.expand(top(pattern.pool(score.float()), count - n, among=active), tuple(mask.shape))


def grow(
    mask: Tensor, score: Tensor, n: int, *, pattern: Pattern = UNSTRUCTURED, exclude: Tensor | None = None
) -> Tensor:
    """Activate the ``n`` inactive units with the highest score.

    Args:
        mask: bool, [O, I, *K]; True = active.
        score: float, the shape of ``mask``. Only inactive positions are read.
        n: how many units to grow.
        pattern: what a unit is.
        exclude: bool, the shape of ``mask``; units that must stay inactive.

    Returns:
        A new bool mask with exactly ``n`` more active units.

    Raises:
        ValueError: If fewer than ``n`` units may be grown.
    """
    closed = pattern.reduce(mask if exclude is None else mask | exclude)
    free = closed.numel() - ones(closed)
    if not 0 <= n <= free:
        raise ValueError(f"cannot grow {n} units: only {free} are inactive and allowed")
    units = top(pattern.pool(score.float()), n, among=~closed).logical_or_(pattern.reduce(mask))
    return pattern.expand(units, tuple(mask.shape))


def update(
    mask: Tensor,
    drop_score: LazyTensor,
    grow_score: LazyTensor,
    fraction: float,
    *,
    pattern: Pattern = UNSTRUCTURED,
    regrow_dropped: bool = True,
    budget: int | None = None,
) -> Tensor:
    """Do one round of drop and grow. The pattern stays the same, and so does the density unless a budget asks for another.

    Args:
        mask: bool [O, I, *K]; True = active.
        drop_score: float, of the shape of ``mask``; the lowest active are dropped. Read before ``grow_score``.
        grow_score: float, of the shape of ``mask``; the highest inactive are grown.
        fraction: share of the active units to drop, in [0, 1]; `counts` rounds it.
        pattern: what a unit is. Balanced patterns such as N:M exchange units only inside a group, and drop more than the fraction where a
            group would otherwise keep more than its share of a budget.
        regrow_dropped: whether a dropped position may be grown again in the same round.
        budget: number of active positions after the round, a whole number of units; None: as many as before.

    Returns:
        A new bool mask with exactly that number of active positions.
    """
    rule = {"pattern": pattern, "regrow_dropped": regrow_dropped, "budget": budget}
    return dropped_and_grown(mask, drop_score, grow_score, fraction, **rule)[1]


def dropped_and_grown(
    mask: Tensor,
    drop_score: LazyTensor,
    grow_score: LazyTensor,
    fraction: float,
    *,
    pattern: Pattern,
    regrow_dropped: bool,
    budget: int | None,
) -> tuple[Tensor, Tensor]:
    """Do the round of `update`; returns the mask between its two halves, in which balanced patterns need not hold, and the new mask."""
    pattern = pattern.bound(mask)
    if isinstance(pattern, Balanced):
        return _exchange_groups(mask, drop_score, grow_score, fraction, pattern, regrow_dropped, budget)
    units = pattern.reduce(mask)
    total = units.numel()
    target = None if budget is None else budget * total // mask.numel()
    dropped, grown = counts(ones(units), total, fraction, target=target, regrow_dropped=regrow_dropped)
    kept = drop(mask, made(drop_score), dropped, pattern=pattern)
    return kept, grow(kept, made(grow_score), grown, pattern=pattern, exclude=None if regrow_dropped else mask & ~kept)


def counts(
    active: int, total: int, fraction: float, *, target: int | None = None, regrow_dropped: bool = True
) -> tuple[int, int]:
    """Return how many units of a layer a round drops, and how many it grows.

    Without a target, both are the fraction of the active units, rounded down. With one, the round drops the fraction, rounded up, or more
    where the target asks for it, and grows up to the target: NDSNN (Huang et al. 2023, arXiv:2304.12214).

    Args:
        active: number of active units, from 0 to ``total``.
        total: number of units.
        fraction: share of the active units to drop, in [0, 1].
        target: number of active units after the round, from 0 to ``total``; None: as many as before.
        regrow_dropped: whether a dropped unit may be grown again in the same round; False: no more are dropped than others can replace.
    """
    if target is None:
        dropped = int(fraction * active)
        dropped = dropped if regrow_dropped else min(dropped, total - active)
        return dropped, dropped
    dropped = max(math.ceil(fraction * active), active - target)
    dropped = dropped if regrow_dropped else min(dropped, total - target)
    return dropped, target - (active - dropped)


def made(score: LazyTensor) -> Tensor:
    """Return the tensor; if it is a function, call it."""
    return score if isinstance(score, Tensor) else score()


def _exchange_groups(
    mask: Tensor,
    drop_score: LazyTensor,
    grow_score: LazyTensor,
    fraction: float,
    pattern: Balanced,
    regrow_dropped: bool,
    budget: int | None,
) -> tuple[Tensor, Tensor]:
    """Drop the lowest units of the whole layer, but in each group as many as it has to lose and no more than it can refill; refill them.

    Without a budget, a group is refilled to what it had; with one, to its share of the budget.
    """
    drop_score, before = made(drop_score), pattern.groups(mask)
    size, active = before.shape[1], ones(before)
    each = None if budget is None else budget * size // mask.numel()
    target = None if each is None else each * before.shape[0]
    # Without regrowing, groups are limited one by one below.
    count, _ = counts(active, before.numel(), fraction, target=target)
    lost = pattern.groups(mask & ~drop(mask, drop_score, count, pattern=pattern))
    had = before.sum(dim=1)
    wanted = had if each is None else torch.full_like(had, each)
    least = (had - wanted).clamp_min(0)
    # A dropped unit that may not come back has to be replaced by another: of each group, so many units may be dropped.
    most = had if regrow_dropped else torch.minimum(had, size - wanted)
    have = lost.sum(dim=1)
    number = torch.minimum(torch.maximum(have, least), most)
    if not torch.equal(number, have):
        scores = pattern.group_scores(drop_score.float())
        others = before & ~lost
        lost = lost | (others & ~_highest(scores, others, had - torch.maximum(have, number)))
        lost = _highest(-scores, lost, number)
    kept = before & ~lost
    closed = kept if regrow_dropped else before
    grown = _highest(pattern.group_scores(made(grow_score).float()), ~closed, wanted - had + number)
    shape = tuple(mask.shape)
    return pattern.ungroup(kept, shape), pattern.ungroup(kept | grown, shape)


def _highest(scores: Tensor, among: Tensor, number: Tensor) -> Tensor:
    """Return a mask [G, M] of the ``number`` [G] highest scores [G, M] of each group among candidates [G, M]; ties go to lower indices."""
    order = scores.masked_fill(~among, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    places = torch.arange(order.shape[1], device=scores.device).expand_as(order) < number[:, None]
    return torch.zeros_like(among).scatter_(1, order, places)
