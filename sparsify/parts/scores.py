"""Scores: the worth of a position. State is a value that goes in and comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

State = Any


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
