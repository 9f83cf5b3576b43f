"""Topology: which masks come next. Counts are exact, ties go to lower flat indices."""

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
"""A tensor, or a function that makes it when it is needed, so that two large scores need not exist at once."""


class Exchange(Protocol):
    """A rule of a round for one weight: a new mask with as many active positions; ``last`` says that it is the program's last weight."""

    def __call__(
        self, mask: Tensor, drop_score: LazyTensor, grow_score: LazyTensor, fraction: float, *, last: bool
    ) -> Tensor: ...


@checked_fields(RecipeError)
@dataclass(frozen=True)
class DropAndGrow:
    """Each round drops a fraction of the active units of every layer and grows as many.

    Attributes:
        drop_by, grow_by: scores; lowest active are dropped, highest inactive grown.
        fraction: of the active units, by step.
        when: which steps end with a round.
        replaces_step: skip the optimizer step on a round (RigL's published code does, its paper's algorithm too).
        regrow_dropped: whether a position dropped in this round may be grown in it; it then keeps its value.
        exchange: a rule of the method's own instead of `update`; it decides about regrowing too.
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
    """Each round only drops, to the density of the schedule, ranked over all layers by ``allocation``."""

    by: Score
    density: Schedule
    when: Trigger
    allocation: Allocation


@checked_fields(RecipeError)
@dataclass(frozen=True)
class InTurn:
    """Several moves; on a step, those whose own trigger names it act in this order, on the same gradients."""

    moves: tuple[DropAndGrow | Prune, ...]

    def when(self, step: int) -> bool:
        """Whether any of them acts."""
        return any(move.when(step) for move in self.moves)


Move = DropAndGrow | Prune
Topology = Move | InTurn


def after_dense(move: DropAndGrow, until: int, *, density: float, allocation: Allocation) -> Topology:
    """``move`` behind a dense start: after step ``until`` masks keep the largest magnitudes; 0: there is none, and ``move`` is all."""
    if not until:
        return move
    return InTurn((Prune(magnitude(), constant(density), at(until), allocation), move))


@checked_fields(RecipeError)
@dataclass(frozen=True)
class Rewinding:
    """Go back to an early state and train again, on what masks are left (Frankle et al. 2019, arXiv:1903.01611).

    Attributes:
        save_at: the state after this many steps is kept; 0: before the first.
        at: steps, ascending, after which, and after whose round, training goes back.
        weights: parameters and buffers go back too; False: only the optimizer's state and the learning rate (Renda et al. 2020,
            arXiv:2003.02389).
    """

    save_at: int
    at: tuple[int, ...]
    weights: bool = True

    def position(self, step: int, total: int) -> tuple[int, int]:
        """Where a learning-rate schedule stands after ``step`` of ``total`` steps: steps of the present training, and its length."""
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
        raise ValueError(f"cannot grow {n} units, {free} are inactive and allowed")
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
    """One round of drop and grow; density and pattern are unchanged.

    Args:
        mask: bool, [O, I, *K].
        drop_score: float, the shape of ``mask``; read first.
        grow_score: float, the shape of ``mask``.
        fraction: of the active units to drop, in [0, 1]; the count is rounded down.
        pattern: what a unit is. For N:M and grouped patterns, units are exchanged inside their group.
        regrow_dropped: whether a dropped position may be grown again at once.

    Returns:
        A new bool mask with as many active positions.
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
    """The tensor itself."""
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
    """Drop the lowest units of the whole layer, at most one exchange more than a group has room for, and refill groups."""
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
