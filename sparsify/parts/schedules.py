"""Schedules (how much) and triggers (whether), both of the optimizer step, counted from 1."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]
Trigger = Callable[[int], bool]


def constant(value: float) -> Schedule:
    """Always ``value``."""
    return lambda step: value


def cosine(start: float, stop_at: int, *, end: float = 0.0) -> Schedule:
    """From ``start`` at step 0 along half a cosine to ``end`` at ``stop_at``, then ``end``."""

    def value(step: int) -> float:
        progress = min(step / max(stop_at, 1), 1.0)
        return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))

    return value


def geometric(start: float, factor: float, *, every: int) -> Schedule:
    """``start``, multiplied by ``factor`` after every ``every`` steps."""
    return lambda step: start * factor ** (step // every)


def linear(start: float, end: float, *, stop_at: int) -> Schedule:
    """From ``start`` at step 0 in a straight line to ``end`` at ``stop_at``, then ``end``."""
    return lambda step: start + (end - start) * min(step / max(stop_at, 1), 1.0)


def cubic(initial: float, final: float, *, start_at: int, stop_at: int) -> Schedule:
    """Density of gradual magnitude pruning (Zhu & Gupta 2017, arXiv:1710.01878, eq. 1): ``final`` exactly from ``stop_at`` on."""

    def value(step: int) -> float:
        if step >= stop_at:
            return final
        progress = max(step - start_at, 0) / max(stop_at - start_at, 1)
        return final + (initial - final) * (1 - progress) ** 3

    return value


def every(n: int, *, start: int | None = None, stop: int | None = None) -> Trigger:
    """At multiples of ``n`` from ``start`` (``n`` by default) up to, not at, ``stop``."""
    first = n if start is None else start
    return lambda step: step >= first and step % n == 0 and (stop is None or step < stop)


def at(*steps: int) -> Trigger:
    """At just these steps."""
    chosen = frozenset(steps)
    return lambda step: step in chosen


def never() -> Trigger:
    """At no step."""
    return lambda step: False
