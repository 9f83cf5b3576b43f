"""Objectives: the loss of a batch, with a memory where it needs one. State is a value that goes in and comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

State = dict[str, float]


class Objective(Protocol):
    """The loss of a batch, where it is not cross-entropy. State is a value that goes in and comes out; it is saved with the run."""

    def init(self) -> Any:
        """The first state."""
        ...

    def observe(self, logits: Tensor, labels: Tensor, state: Any, step: int) -> Any:
        """The state for the loss of ``step`` (from 1). Called once a step, with its first batch [N, K] and labels [N]; no gradient."""
        ...

    def loss(self, logits: Tensor, labels: Tensor, state: Any) -> Tensor:
        """A scalar. Evaluated again, with the same state, by the probes of a correction."""
        ...

    def readings(self, state: Any) -> Mapping[str, float]:
        """Figures of a state for the history of a run, by name."""
        ...


def unknown_aware(logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Cross-entropy over K + 1 logits in which mistakes weigh more the less the unknown is believed in; a scalar.

    With p = softmax(logits), u = p of the last class and h = -log p of the label, the mean over the batch of w · h, where w = 1 + alpha /
    (1 + alpha · u) if the highest logit is not the label's (it may be the unknown's), else 1. The gradient flows through u in w. From the
    MOON repository (863f49a), whose clamp of u below 1 - 1e-7 changes nothing but the gradient at u = 1 and is left out.

    Args:
        logits: [N, K + 1], the last the unknown's.
        labels: int64 [N], 0 to K - 1.
        alpha: at least 0; 0 is cross-entropy.
    """
    logs = logits.log_softmax(1)
    loss = -logs.gather(1, labels[:, None]).squeeze(1)
    wrong = logits.argmax(1) != labels
    weight = 1 + wrong * (alpha / (1 + alpha * logs[:, -1].exp()))
    return (weight * loss).mean()


@dataclass(frozen=True)
class UnknownAware:
    """`unknown_aware` whose alpha tunes itself: cross-entropy for ``warmup`` steps, then alpha goes from S / ``divisor`` to ``final``.

    S is a running mean, over batches, of the mean of (1 - u) · h. After the warm-up, steps come in intervals of ``every``; alpha is set by
    S on the first step of the first one, keeps its value within an interval and changes by the same amount from one to the next, so
    that the last one has ``final``. The state is ``running`` (S), ``unknown`` (the same running mean of u), ``first`` (alpha of the first
    interval, negative before it) and ``alpha``.

    Attributes:
        total_steps: of the run.
        warmup: steps of plain cross-entropy, at least 0.
        every: steps of an interval; in the published code an epoch.
        final: alpha of the last interval, above 0.
        divisor: of S, above 0.
        smoothing: weight of the newest batch in the running means, in (0, 1].

    Raises:
        ValueError: If fewer than two intervals are left after the warm-up.
    """

    total_steps: int
    warmup: int
    every: int
    final: float = 1.0
    divisor: float = 64.0
    smoothing: float = 0.05

    def __post_init__(self) -> None:
        if self.intervals < 2:
            raise ValueError(
                f"{self.total_steps} steps leave {max(self.intervals, 0)} interval(s) of {self.every} after a warm-up of {self.warmup}; "
                f"alpha needs two to go from its first to its final value"
            )

    @property
    def intervals(self) -> int:
        """Intervals after the warm-up; the last may be shorter."""
        return -(-(self.total_steps - self.warmup) // self.every)

    def init(self) -> State:
        """Before the first batch."""
        return {"running": -1.0, "unknown": -1.0, "first": -1.0, "alpha": 0.0}

    def observe(self, logits: Tensor, labels: Tensor, state: State, step: int) -> State:
        """The state for the loss of ``step`` (from 1), given its batch."""
        with torch.no_grad():
            logs = logits.log_softmax(1)
            share, loss = logs[:, -1].exp(), -logs.gather(1, labels[:, None]).squeeze(1)
            found = {"running": float(((1 - share) * loss).mean()), "unknown": float(share.mean())}
        means = {
            key: value if state[key] < 0 else state[key] + self.smoothing * (value - state[key])
            for key, value in found.items()
        }
        first, index = state["first"], (step - self.warmup - 1) // self.every
        if step <= self.warmup:
            return {**state, **means}
        if first < 0:
            first = means["running"] / self.divisor
        alpha = first + (self.final - first) * min(index / (self.intervals - 1), 1.0)
        return {**means, "first": first, "alpha": alpha}

    def loss(self, logits: Tensor, labels: Tensor, state: State) -> Tensor:
        """A scalar; cross-entropy where alpha is 0."""
        return unknown_aware(logits, labels, state["alpha"])

    def readings(self, state: State) -> Mapping[str, float]:
        """``alpha``, and ``unknown_mass``, the running mean of u over training batches."""
        return {"alpha": state["alpha"], "unknown_mass": max(state["unknown"], 0.0)}
