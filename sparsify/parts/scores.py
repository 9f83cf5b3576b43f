"""Scores: the worth of a position. State is a value that goes in and comes out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsify.parts.schedules import Schedule

State = Any
MOST_VISITS = torch.iinfo(torch.int16).max
"""Visits are counted in 16 bits and stay at the largest number; its bonus is nil."""


@dataclass(frozen=True)
class View:
    """What a score may see of one weight at a topology update; all tensors have the weight's shape.

    Attributes:
        weight: values, 0 where inactive.
        mask: bool, True = active.
        gradient: the dense gradient dL/d(weight × mask), or None on steps that do not record it.
        step: the optimizer step, counted from 1.
        generator: the only source of randomness.
    """

    weight: Tensor
    mask: Tensor
    gradient: Tensor | None
    step: int
    generator: torch.Generator

    def dense_gradient(self) -> Tensor:
        """The gradient.

        Raises:
            ValueError: If none was recorded.
        """
        if self.gradient is None:
            raise ValueError("this score needs the dense gradient, and none was recorded on this step")
        return self.gradient


@dataclass(frozen=True)
class Score:
    """``init(weight) -> state`` and ``rate(view, state) -> (scores, state)``; higher is worth more."""

    init: Callable[[Tensor], State]
    rate: Callable[[View, State], tuple[Tensor, State]]
    needs_gradient: bool = False


def stateless(rate: Callable[[View], Tensor], *, needs_gradient: bool = False) -> Score:
    """A score without memory."""
    return Score(lambda weight: None, lambda view, state: (rate(view), state), needs_gradient)


def magnitude() -> Score:
    """|w|."""
    return stateless(lambda view: view.weight.abs())


def gradient() -> Score:
    """|dL/dw|, defined for inactive positions too."""
    return stateless(lambda view: view.dense_gradient().abs(), needs_gradient=True)


def saliency() -> Score:
    """|w · dL/dw|: first-order change of the loss when the position is removed."""
    return stateless(lambda view: (view.weight * view.dense_gradient()).abs(), needs_gradient=True)


def random() -> Score:
    """Uniform noise from the view's generator."""

    def rate(view: View) -> Tensor:
        noise = torch.rand(view.weight.shape, generator=view.generator, device=view.generator.device)
        return noise.to(view.weight.device)

    return stateless(rate)


def signed_gradient() -> Score:
    """dL/dw with its sign."""
    return stateless(lambda view: view.dense_gradient(), needs_gradient=True)


def exploration(c: Schedule, *, eps: float = 1.0, step_unit: int = 1, visit_unit: int = 1) -> Score:
    """A bonus for positions that were rarely active: ``c(step) * ln(t) / (N + eps)``; 0 where t <= 1.

    N counts the masks in which a position was active, one a round, the first one included. The counts are the state, int16.

    Args:
        c: by optimizer step, at least 0.
        eps: above 0; what a position that was never active is divided by.
        step_unit: t is the optimizer step over this.
        visit_unit: N is the number of masks times this; with the interval between rounds, N counts steps.
    """

    def rate(view: View, visits: Tensor) -> tuple[Tensor, Tensor]:
        visits = visits + (view.mask & (visits < MOST_VISITS))
        bonus = c(view.step) * math.log(max(view.step / step_unit, 1.0))
        return bonus / (visits.to(view.weight.dtype) * visit_unit + eps), visits

    return Score(lambda weight: torch.zeros_like(weight, dtype=torch.int16), rate)


def unvisited() -> Score:
    """1 where a position has never been active, 0 elsewhere. The state says where it has been."""

    def rate(view: View, visited: Tensor) -> tuple[Tensor, Tensor]:
        visited = visited | view.mask
        return (~visited).to(view.weight.dtype), visited

    return Score(lambda weight: torch.zeros_like(weight, dtype=torch.bool), rate)


def added(first: Score, second: Score) -> Score:
    """The sum of two scores; the state is the pair of theirs."""

    def rate(view: View, state: State) -> tuple[Tensor, State]:
        one, first_state = first.rate(view, state[0])
        other, second_state = second.rate(view, state[1])
        return one + other, (first_state, second_state)

    return Score(
        lambda weight: (first.init(weight), second.init(weight)), rate, first.needs_gradient or second.needs_gradient
    )


def absolute(score: Score) -> Score:
    """The absolute value of a score."""

    def rate(view: View, state: State) -> tuple[Tensor, State]:
        values, state = score.rate(view, state)
        return values.abs(), state

    return Score(score.init, rate, score.needs_gradient)


def normalised(score: Score) -> Score:
    """A score over the mean of its absolute values where the mask is off; as it is where that mean is 0 or nothing is off."""

    def rate(view: View, state: State) -> tuple[Tensor, State]:
        values, state = score.rate(view, state)
        inactive = ~view.mask
        mean = float(values.abs().mul_(inactive).sum(dtype=torch.float64)) / max(int(inactive.count_nonzero()), 1)
        return values / mean if mean > 0 else values, state

    return Score(score.init, rate, score.needs_gradient)


SCALES = ("none", "outputs", "inputs", "both")
"""What `scaled` can divide by."""


def scaled(score: Score, by: str) -> Score:
    """A score over its root mean square per output, per input, or both, so that growth by it is spread over all of them.

    The weight is [O, I, *K]; active positions count too. ``both`` divides by the product of the two and multiplies by the root mean
    square of the whole weight, which takes out the part of the score that is an output's times an input's. An output or input
    whose scores are all 0 keeps them.

    Args:
        score: of any kind.
        by: one of `SCALES`; ``none`` is the score itself.
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


def _reciprocal(mean_square: Tensor) -> Tensor:
    """1 over the root; 1 where it is 0."""
    return mean_square.masked_fill(mean_square == 0, 1.0).rsqrt()
