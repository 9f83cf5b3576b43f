"""Objectives: losses of a batch, with a memory if they need one. The memory is a state that goes in and comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sparsify.parts.schedules import Schedule

State = dict[str, float]


class Objective(Protocol):
    """A loss of a batch other than cross-entropy. Its state goes in and comes out as a value, and is saved with the run."""

    def init(self) -> Any:
        """Return the first state."""
        ...

    def observe(self, logits: Tensor, labels: Tensor, state: Any, step: int) -> Any:
        """Return the state for the loss of ``step`` (from 1). Called once per step without gradients, with its first logits and labels."""
        ...

    def loss(self, logits: Tensor, labels: Tensor, state: Any) -> Tensor:
        """Compute the loss, a scalar. The probes of a correction call it again with the same state."""
        ...

    def readings(self, state: Any) -> Mapping[str, float]:
        """Return figures of a state for the history of a run, by name."""
        ...


@dataclass(frozen=True)
class Stateless:
    """An objective without memory.

    Attributes:
        compute: the loss of logits and labels, a scalar.
    """

    compute: Callable[[Tensor, Tensor], Tensor]

    def init(self) -> State:
        """Return an empty state."""
        return {}

    def observe(self, logits: Tensor, labels: Tensor, state: State, step: int) -> State:
        """Return the state as it is."""
        del logits, labels, step
        return state

    def loss(self, logits: Tensor, labels: Tensor, state: State) -> Tensor:
        """Compute the loss, a scalar."""
        del state
        return self.compute(logits, labels)

    def readings(self, state: State) -> Mapping[str, float]:
        """Return no figures."""
        return state


@dataclass(frozen=True)
class Scheduled:
    """An objective with one number that follows a schedule. The state holds the number of the step, by ``name``.

    Attributes:
        compute: the loss of logits, labels and the number, a scalar.
        name: what the number is, for the history of a run.
        schedule: the number at each step, from 1.
    """

    compute: Callable[[Tensor, Tensor, float], Tensor]
    name: str
    schedule: Schedule

    def init(self) -> State:
        """Return the state of the first step."""
        return {self.name: self.schedule(1)}

    def observe(self, logits: Tensor, labels: Tensor, state: State, step: int) -> State:
        """Return the state for the loss of ``step`` (from 1)."""
        del logits, labels, state
        return {self.name: self.schedule(step)}

    def loss(self, logits: Tensor, labels: Tensor, state: State) -> Tensor:
        """Compute the loss, a scalar."""
        return self.compute(logits, labels, state[self.name])

    def readings(self, state: State) -> Mapping[str, float]:
        """Return the number, by its name."""
        return state


def unknown_aware(logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Compute a cross-entropy over K + 1 logits that weighs a mistake more, the lower the probability of the unknown class; a scalar.

    With p = softmax(logits), u = p of the last class and h = -log p of the label, the loss is the mean over the batch of w · h. The weight
    w is 1 + alpha / (1 + alpha · u) if the highest logit is not the label's (it may be the unknown's), and else 1. The gradient also flows
    through u in w. This follows the MOON repository (863f49a). That code clamps u below 1 - 1e-7, which only changes the gradient at
    u = 1; the clamp is left out here.

    Args:
        logits: float [N, K + 1]; the last one belongs to the unknown class.
        labels: int64 [N], 0 to K - 1.
        alpha: extra weight of mistakes, at least 0; 0 gives plain cross-entropy.
    """
    logs = logits.log_softmax(1)
    loss = -logs.gather(1, labels[:, None]).squeeze(1)
    wrong = logits.argmax(1) != labels
    weight = 1 + wrong * (alpha / (1 + alpha * logs[:, -1].exp()))
    return (weight * loss).mean()


@dataclass(frozen=True)
class UnknownAware:
    """`unknown_aware` that tunes alpha: cross-entropy for ``warmup`` steps, then alpha moves from S / ``divisor`` to ``final``.

    S is the running mean over batches of (1 - u) · h. After the warm-up, training is divided into intervals of ``every`` steps. Alpha of
    the first interval is S / ``divisor`` at its first step. Alpha is constant within an interval and changes by the same amount between
    intervals, so that the last one has ``final``. The state holds ``running`` (S), ``unknown`` (the running mean of u), ``first`` (alpha of
    the first interval; negative before it) and ``alpha``.

    Attributes:
        total_steps: steps of the whole run.
        warmup: steps of plain cross-entropy, at least 0.
        every: steps per interval, at least 1; the published code uses an epoch.
        final: alpha of the last interval, above 0.
        divisor: what S is divided by for the first alpha, above 0.
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
        """Number of intervals after the warm-up; the last may be shorter."""
        return -(-(self.total_steps - self.warmup) // self.every)

    def init(self) -> State:
        """Return the state before the first batch."""
        return {"running": -1.0, "unknown": -1.0, "first": -1.0, "alpha": 0.0}

    def observe(self, logits: Tensor, labels: Tensor, state: State, step: int) -> State:
        """Return the state for the loss of ``step`` (from 1), given its logits [N, K + 1] and labels [N]."""
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
        """Compute the loss, a scalar; plain cross-entropy while alpha is 0."""
        return unknown_aware(logits, labels, state["alpha"])

    def readings(self, state: State) -> Mapping[str, float]:
        """Return ``alpha``, and ``unknown_mass``, the running mean of u over training batches."""
        return {"alpha": state["alpha"], "unknown_mass": max(state["unknown"], 0.0)}
