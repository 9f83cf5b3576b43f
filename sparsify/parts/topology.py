"""Topology: how masks change from round to round. Counts are exact, and ties go to lower flat indices."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sparsify.arguments import checked_fields
from sparsify.errors import RecipeError
from sparsify.parts.allocation import Allocation
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
class DropAndGrow:
    """Each round drops a fraction of the active units of every layer and grows as many.

    Attributes:
        drop_by, grow_by: scores. The active units with the lowest drop score are dropped; inactive ones with the highest grow score grow.
        fraction: share of the active units to exchange, in [0, 1], by step.
        when: the steps that end with a round.
        replaces_step: skip the optimizer step on a round (RigL's published code and its paper's algorithm both do).
        regrow_dropped: whether a position dropped in a round may be grown again in the same round; it then keeps its value.
        exchange: a rule of the method that replaces `update`; it also decides about regrowing.
    """

    drop_by: Score
    grow_by: Score
    fraction: Schedule
    when: Trigger
    replaces_step: bool = False
    regrow_dropped: bool = True
    exchange: Exchange | None = None


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
) -> Tensor:
    """Do one round of drop and grow. Density and pattern stay the same.

    Args:
        mask: bool [O, I, *K]; True = active.
        drop_score: float, of the shape of ``mask``; the lowest active are dropped. Read before ``grow_score``.
        grow_score: float, of the shape of ``mask``; the highest inactive are grown.
        fraction: share of the active units to drop, in [0, 1]; the count is rounded down.
        pattern: what a unit is. Balanced patterns such as N:M exchange units only inside a group.
        regrow_dropped: whether a dropped position may be grown again in the same round.

    Returns:
        A new bool mask with the same number of active positions.
    """
    pattern = pattern.bound(mask)
    if isinstance(pattern, Balanced):
        return _update_groups(mask, drop_score, grow_score, fraction, pattern, regrow_dropped=regrow_dropped)
    units = pattern.reduce(mask)
    active = ones(units)
    inactive = units.numel() - active
    n = min(int(fraction * active), inactive) if not regrow_dropped else int(fraction * active)
    kept = drop(mask, made(drop_score), n, pattern=pattern)
    return grow(kept, made(grow_score), n, pattern=pattern, exclude=None if regrow_dropped else mask & ~kept)


def made(score: LazyTensor) -> Tensor:
    """Return the tensor; if it is a function, call it."""
    return score if isinstance(score, Tensor) else score()


def _update_groups(
    mask: Tensor,
    drop_score: LazyTensor,
    grow_score: LazyTensor,
    fraction: float,
    pattern: Balanced,
    *,
    regrow_dropped: bool,
) -> Tensor:
    """Drop the lowest units of the whole layer, but no more per group than it can refill, and refill every group."""
    drop_score = made(drop_score)
    count = int(fraction * ones(pattern.reduce(mask)))
    dropped = mask & ~drop(mask, drop_score, count, pattern=pattern)
    before, lost = pattern.groups(mask), pattern.groups(dropped)
    if not regrow_dropped:
        # A group has as many inactive units as any other; more drops than that cannot be refilled by others.
        rank = pattern.group_scores(drop_score.float()).masked_fill(~lost, torch.inf).sort(dim=1, stable=True).indices
        allowed = torch.zeros_like(lost).scatter_(1, rank[:, : int((~before[0]).count_nonzero())], True)
        lost = lost & allowed
    need = lost.sum(dim=1)
    closed = before if not regrow_dropped else before & ~lost
    order = (
        pattern.group_scores(made(grow_score).float())
        .masked_fill(closed, -torch.inf)
        .sort(dim=1, descending=True, stable=True)
        .indices
    )
    places = torch.arange(order.shape[1], device=mask.device).expand_as(order) < need[:, None]
    grown = torch.zeros_like(before).scatter_(1, order, places)
    return pattern.ungroup((before & ~lost) | grown, tuple(mask.shape))
