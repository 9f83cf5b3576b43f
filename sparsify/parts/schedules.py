"""Schedules (how much) and triggers (whether). Both are functions of the optimizer step, which counts from 1."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]
Trigger = Callable[[int], bool]


def constant(value: float) -> Schedule:
    """Return ``value`` at every step."""
    return lambda step: value


def cosine(start: float, stop_at: int, *, end: float = 0.0) -> Schedule:
    """Go from ``start`` at step 0 along half a cosine to ``end`` at step ``stop_at``, and stay there."""

    def value(step: int) -> float:
        progress = min(step / max(stop_at, 1), 1.0)
        return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))

    return value


def geometric(start: float, factor: float, *, every: int) -> Schedule:
    """Begin with ``start`` and multiply by ``factor`` after every ``every`` steps."""
    return lambda step: start * factor ** (step // every)


def linear(start: float, end: float, *, stop_at: int) -> Schedule:
    """Go from ``start`` at step 0 in a straight line to ``end`` at step ``stop_at``, and stay there."""
    return lambda step: start + (end - start) * min(step / max(stop_at, 1), 1.0)


def cubic(initial: float, final: float, *, start_at: int, stop_at: int) -> Schedule:
    """Fall from density ``initial`` to ``final`` as in gradual magnitude pruning (Zhu & Gupta 2017, arXiv:1710.01878, eq. 1).

    The density is ``initial`` until ``start_at`` and exactly ``final`` from ``stop_at`` on; densities are in [0, 1], times in steps.
    """

    def value(step: int) -> float:
        if step >= stop_at:
            return final
        progress = max(step - start_at, 0) / max(stop_at - start_at, 1)
        return final + (initial - final) * (1 - progress) ** 3

    return value


def every(n: int, *, start: int | None = None, stop: int | None = None) -> Trigger:
    """Fire at multiples of ``n`` from step ``start`` (default ``n``) up to but excluding step ``stop``."""
    first = n if start is None else start
    return lambda step: step >= first and step % n == 0 and (stop is None or step < stop)


def at(*steps: int) -> Trigger:
    """Fire only at these steps."""
    chosen = frozenset(steps)
    return lambda step: step in chosen


def never() -> Trigger:
    """Fire at no step."""
    return lambda step: False
