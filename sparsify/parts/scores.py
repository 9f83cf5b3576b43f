"""Scores: how much each position is worth. A score's state goes in and comes out as a value."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsify.parts.schedules import Schedule

State = Any
MOST_VISITS = torch.iinfo(torch.int16).max
"""Largest number of visits that the 16-bit counts of `exploration` hold; counts stay there, where the bonus is negligible."""


@dataclass(frozen=True)
class View:
    """What a score may see of one weight at a topology update. All tensors have the weight's shape.

    Attributes:
        weight: values; inactive ones are 0.
        mask: bool; True = active.
        gradient: the dense gradient dL/d(weight × mask); None on steps that do not record it.
        step: the optimizer step, counted from 1.
        generator: the only source of randomness.
    """

    weight: Tensor
    mask: Tensor
    gradient: Tensor | None
    step: int
    generator: torch.Generator

    def dense_gradient(self) -> Tensor:
        """Return the dense gradient.

        Raises:
            ValueError: If none was recorded.
        """
        if self.gradient is None:
            raise ValueError("this score needs the dense gradient, but this step recorded none")
        return self.gradient


@dataclass(frozen=True)
class Score:
    """A score: ``init(weight) -> state`` and ``rate(view, state) -> (scores, state)``. Higher scores are worth more.

    ``readings(state)`` are figures of one weight's state for the history of a run, by name; they are summed over weights.
    """

    init: Callable[[Tensor], State]
    rate: Callable[[View, State], tuple[Tensor, State]]
    needs_gradient: bool = False
    readings: Callable[[State], Mapping[str, float]] | None = None


def stateless(rate: Callable[[View], Tensor], *, needs_gradient: bool = False) -> Score:
    """Make a score without memory from a function of the view."""
    return Score(lambda weight: None, lambda view, state: (rate(view), state), needs_gradient)


def magnitude() -> Score:
    """Score by |w|."""
    return stateless(lambda view: view.weight.abs())


def gradient() -> Score:
    """Score by |dL/dw|, the dense gradient; inactive positions have one too."""
    return stateless(lambda view: view.dense_gradient().abs(), needs_gradient=True)


def saliency() -> Score:
    """Score by |w · dL/dw|: the first-order change of the loss if the position is removed."""
    return stateless(lambda view: (view.weight * view.dense_gradient()).abs(), needs_gradient=True)


def random() -> Score:
    """Score by uniform noise from the view's generator."""

    def rate(view: View) -> Tensor:
        noise = torch.rand(view.weight.shape, generator=view.generator, device=view.generator.device)
        return noise.to(view.weight.device)

    return stateless(rate)


def signed_gradient() -> Score:
    """Score by dL/dw, with its sign."""
    return stateless(lambda view: view.dense_gradient(), needs_gradient=True)


def exploration(c: Schedule, *, eps: float = 1.0, step_unit: int = 1, visit_unit: int = 1) -> Score:
    """Give a bonus to positions that were rarely active: ``c(step) * ln(t) / (N + eps)``; 0 if t <= 1.

    N counts the masks in which a position was active: one per round, and the first mask. The counts, int16, are the state.

    Args:
        c: scale of the bonus by optimizer step, at least 0.
        eps: added to the count N, above 0.
        step_unit: t is the optimizer step divided by this, at least 1.
        visit_unit: N is the number of masks times this, at least 1. With the steps between rounds here, N counts steps.
    """

    def rate(view: View, visits: Tensor) -> tuple[Tensor, Tensor]:
        visits = visits + (view.mask & (visits < MOST_VISITS))
        bonus = c(view.step) * math.log(max(view.step / step_unit, 1.0))
        return bonus / (visits.to(view.weight.dtype) * visit_unit + eps), visits

    return Score(lambda weight: torch.zeros_like(weight, dtype=torch.int16), rate)


def unvisited() -> Score:
    """Score 1 for positions that have never been active, 0 for others. The state records which have been active."""

    def rate(view: View, visited: Tensor) -> tuple[Tensor, Tensor]:
        visited = visited | view.mask
        return (~visited).to(view.weight.dtype), visited

    return Score(lambda weight: torch.zeros_like(weight, dtype=torch.bool), rate)


def added(first: Score, second: Score) -> Score:
    """Add two scores; the state is the pair of their states."""

    def rate(view: View, state: State) -> tuple[Tensor, State]:
        one, first_state = first.rate(view, state[0])
        other, second_state = second.rate(view, state[1])
        return one + other, (first_state, second_state)

    return Score(
        lambda weight: (first.init(weight), second.init(weight)), rate, first.needs_gradient or second.needs_gradient
    )


def absolute(score: Score) -> Score:
    """Take the absolute value of a score."""

    def rate(view: View, state: State) -> tuple[Tensor, State]:
        values, state = score.rate(view, state)
        return values.abs(), state

    return Score(score.init, rate, score.needs_gradient)


def normalised(score: Score) -> Score:
    """Divide a score by its mean absolute value over inactive positions; unchanged if that mean is 0 or no position is inactive."""

    def rate(view: View, state: State) -> tuple[Tensor, State]:
        values, state = score.rate(view, state)
        inactive = ~view.mask
        mean = float(values.abs().mul_(inactive).sum(dtype=torch.float64)) / max(int(inactive.count_nonzero()), 1)
        return values / mean if mean > 0 else values, state

    return Score(score.init, rate, score.needs_gradient)


SCALES = ("none", "outputs", "inputs", "both")
"""The values that the argument ``by`` of `scaled` can take."""


def scaled(score: Score, by: str) -> Score:
    """Divide a score by its root mean square per output, per input, or both, so that growth spreads over all outputs or inputs.

    The weight is [O, I, *K]; the means include active positions. ``both`` divides by the product of the two root mean squares and
    multiplies by that of the whole weight; this removes the part of the score that is a factor per output times a factor per input. An
    output or input whose scores are all 0 stays unchanged.

    Args:
        score: the score to divide.
        by: one of `SCALES`; ``none`` returns the score itself.
    """
    if by == "none":
        return score

    def rate(view: View, state: State) -> tuple[Tensor, State]:
        values, state = score.rate(view, state)
        squares = values.float().square()
        rows, columns = [*range(1, squares.ndim)], [0, *range(2, squares.ndim)]
        factor = torch.ones((), device=values.device)
        if by in {"outputs", "both"}:
            factor = factor * _reciprocal(squares.mean(dim=rows, keepdim=True))
        if by in {"inputs", "both"}:
            factor = factor * _reciprocal(squares.mean(dim=columns, keepdim=True))
        if by == "both":
            factor = factor * squares.mean().sqrt()
        return values * factor.to(values.dtype), state

    return Score(score.init, rate, score.needs_gradient)


WHEN_SILENT = ("order", "random")
"""The values that the argument ``when_silent`` of `by_gradient` can take."""


def or_random(score: Score) -> Score:
    """Score by ``score``, but at random where it is 0 at every position of a weight.

    Without that, ties go to lower flat indices. The state is that of ``score`` and how often the weight was scored at random, which is
    the figure ``grown_at_random``.
    """
    noise = random()

    def rate(view: View, state: State) -> tuple[Tensor, State]:
        values, inner = score.rate(view, state[0])
        if bool(values.any()):
            return values, (inner, state[1])
        return noise.rate(view, None)[0], (inner, state[1] + 1)

    return Score(
        lambda weight: (score.init(weight), 0),
        rate,
        score.needs_gradient,
        readings=lambda state: {"grown_at_random": float(state[1])},
    )


def by_gradient(*, normalise: str = "none", when_silent: str = "order") -> Score:
    """Score by |dL/dw|, as methods that grow by gradient offer it.

    Args:
        normalise: one of `SCALES`; see `scaled`.
        when_silent: what happens where the gradient of a weight is exactly 0 at every position, as it is after a layer of spiking neurons
            that never fire: ``order`` takes positions of the lowest flat index, ``random`` takes them at random (`or_random`).
    """
    score = scaled(gradient(), normalise)
    return score if when_silent == "order" else or_random(score)


def _reciprocal(mean_square: Tensor) -> Tensor:
    """Return 1 / sqrt(mean_square), or 1 where the mean square is 0."""
    return mean_square.masked_fill(mean_square == 0, 1.0).rsqrt()
