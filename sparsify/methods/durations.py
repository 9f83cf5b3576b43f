"""Durations of a method's schedule, written as steps or as a share of the run."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated

from sparsify.arguments import LATER
from sparsify.errors import RecipeError

Duration = Annotated[float | str, LATER]
"""``100`` is a number of steps; ``"75%"`` and ``0.75`` are a share of the run; ``"3% from 4 to 100"`` is a share with bounds in steps.

A whole number is always a number of steps. A float is always a share, strictly between 0 and 1. A share is at least 1 step, unless its
bounds begin at 0 and the option may be 0.
"""
UPDATE_EVERY = "3% from 4 to 100"
"""The default interval between rounds: 100 steps, as published, and less in short runs, which would otherwise have few rounds or none."""

_RESOLVED: ContextVar[dict[str, int] | None] = ContextVar("resolved durations", default=None)
_TEXT = re.compile(r"\s*(?P<percent>\d+(\.\d*)?|\.\d+)\s*%(\s+from\s+(?P<low>\d+)\s+to\s+(?P<high>\d+))?\s*")


@dataclass(frozen=True)
class Length:
    """A parsed duration: ``share`` of the run, clipped to [``low``, ``high``] steps; exactly ``low`` steps if ``share`` is None."""

    share: float | None
    low: int
    high: int | None = None

    @property
    def is_none(self) -> bool:
        """Whether it is 0 steps in every run."""
        return self.share is None and self.low == 0

    def steps(self, total: int) -> int:
        """Return the number of steps in a run of ``total`` steps."""
        if self.share is None:
            return self.low
        found = max(round(self.share * total), self.low)
        return found if self.high is None else min(found, self.high)


def as_steps(value: Duration, total_steps: int, option: str, *, least: int = 1) -> int:
    """Convert a duration to a number of steps.

    Args:
        value: the duration; see `Duration`.
        total_steps: steps of the run, at least 1.
        option: name of the option, for the message.
        least: smallest number of steps allowed: 1, or 0 for a start that may be the beginning of the run.

    Raises:
        RecipeError: If the value is not a duration, or is less than ``least``.
    """
    return resolved(option, read_length(value, option, least).steps(total_steps))


def resolved(option: str, steps: int) -> int:
    """Record ``steps`` for `resolving` and return it; for a duration that is a share of something other than the run."""
    record = _RESOLVED.get()
    if record is not None:
        record[option] = steps
    return steps


@contextmanager
def resolving() -> Generator[dict[str, int]]:
    """Collect the steps that durations stand for, by option, as they are resolved within the block."""
    record = dict[str, int]()
    token = _RESOLVED.set(record)
    try:
        yield record
    finally:
        _RESOLVED.reset(token)


def check_durations(least: int = 1, /, **given: Duration) -> None:
    """Check that options are durations, before the length of the run is known.

    Args:
        least: smallest number of steps allowed, as for `as_steps`.
        given: values by option name.

    Raises:
        RecipeError: If one is not; the message names the first.
    """
    for option, value in given.items():
        read_length(value, option, least)


def dense_steps(value: Duration, total_steps: int) -> int:
    """Convert the duration of a dense start to steps; it must be shorter than the run, and 0 means none.

    Raises:
        RecipeError: If the value is not a duration, or leaves no step for the sparse part.
    """
    steps = as_steps(value, total_steps, "dense_until", least=0)
    if steps >= total_steps:
        raise RecipeError(
            f"dense_until should leave steps for the sparse part; found {value} of a run of {total_steps} steps."
        )
    return steps


def read_length(value: object, option: str, least: int = 1) -> Length:
    """Parse a duration; see `as_steps`.

    Raises:
        RecipeError: If the value is not a duration, or is less than ``least``.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return Length(None, value)
    if isinstance(value, float):
        if 0.0 < value < 1.0:
            return Length(value, max(least, 1))
        if not value and least == 0:
            return Length(None, 0)
        if value >= 1.0 and value.is_integer():
            whole = "'100%' for the whole run" if value < 2.0 else "'100%' or less for a share of the run"
            raise RecipeError(
                f"{option} = {value} does not say whether it is a number of steps. Write {int(value)} for steps, or {whole}."
            )
    if isinstance(value, str) and (match := _TEXT.fullmatch(value)):
        share, low, high = float(match["percent"]) / 100, int(match["low"] or 1), match["high"]
        ordered = high is None or (min(least, 1) <= low <= int(high) and int(high) > 0)
        if not share and least == 0 and high is None:
            return Length(None, 0)
        if 0.0 < share <= 1.0 and ordered:
            return Length(share, low, None if high is None else int(high))
    raise RecipeError(
        f"{option} should be a number of steps from {least} on (such as 100) or a share of the run (such as '75%' or 0.75), found "
        f"{value!r}."
    )
