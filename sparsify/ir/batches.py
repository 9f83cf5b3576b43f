"""The batch sizes a trace holds for, from the guards that torch.export leaves."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

LIMITS = 2048, 1 << 18
"""Sizes are tried up to twice the largest number in the guards, but no fewer and no more than these."""
EXCEPTIONS = 8
_SIZE = re.compile(r"L(?:\[[^\[\]]*\])+\.size\(\)\[0\]")


@dataclass(frozen=True)
class BatchRange:
    """Batch sizes N: ``low``, ``low + step``, ... up to ``high`` (None: no bound), without ``excluded``."""

    low: int = 1
    high: int | None = None
    step: int = 1
    excluded: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        numbers = (self.low, self.step, *self.excluded, *(() if self.high is None else (self.high,)))
        if not all(type(n) is int and n > 0 for n in numbers) or (self.high is not None and self.high < self.low):
            raise ValueError(f"a range of batch sizes holds positive whole numbers in order, found {self}")

    def __contains__(self, size: int) -> bool:
        above = size >= self.low and (self.high is None or size <= self.high)
        return above and (size - self.low) % self.step == 0 and size not in self.excluded

    def __str__(self) -> str:
        if self.low == self.high:
            return f"N = {self.low}"
        text = f"{self.low} <= N" + (f" <= {self.high}" if self.high is not None else "")
        if self.step > 1:
            text += f" in steps of {self.step}"
        return text + (f", but not {', '.join(map(str, self.excluded))}" if self.excluded else "")

    @property
    def everything(self) -> bool:
        """Whether every batch of at least one sample is in the range."""
        return self == BatchRange()

    def nearest(self, size: int) -> int:
        """The smallest size in the range that is at least ``size``, or else the largest."""
        reach = self.step * (len(self.excluded) + 2)
        upwards = (n for n in range(max(size, self.low), max(size, self.low) + reach) if n in self)
        found = next(upwards, None)
        if found is None:
            top = self.high if self.high is not None else size
            found = next(n for n in range(top, self.low - 1, -1) if n in self)
        return found

    def at_most(self, size: int) -> int | None:
        """The largest size in the range that is no larger than ``size``; None where there is none."""
        top = size if self.high is None else min(size, self.high)
        return next((n for n in range(top, self.low - 1, -1) if n in self), None)

    def pieces(self, count: int, most: int) -> list[int]:
        """Sizes in the range, at most ``most`` each, that make up ``count`` samples, or as many of them as they can."""
        found: list[int] = []
        while (size := self.at_most(min(count, most))) is not None:
            found.append(size)
            count -= size
        return found

    def without_one(self) -> BatchRange:
        """The range without batches of one sample."""
        if self.low > 1:
            return self
        low = next(n for n in range(2, 3 + self.step * (len(self.excluded) + 1)) if n in self)
        return BatchRange(low, self.high, self.step, tuple(n for n in self.excluded if n > low))


EVERY = BatchRange()


def range_of(guards: Sequence[str], example: int) -> BatchRange | None:
    """The sizes that satisfy all guards and hang together with the example's.

    Args:
        guards: Python conditions on the sizes of inputs, as torch.export writes them. Every size of dimension 0 is the batch.
        example: the batch of the example inputs.

    Returns:
        None where a guard cannot be read, or no size but the example's holds.
    """
    if not guards:
        return BatchRange()
    texts = [_SIZE.sub("N", guard) for guard in guards]
    if any("L[" in text for text in texts):
        return None
    largest = max(int(number) for text in texts for number in re.findall(r"\d+", f"0 {text}"))
    limit = min(max(LIMITS[0], 2 * largest + 2), LIMITS[1])
    conditions = [_condition(text) for text in texts]
    held = [n for n in range(1, limit + 1) if all(condition(n) for condition in conditions)]
    if example not in held:
        return None
    found = _described(held, example)
    if found.high is not None and found.high + found.step > limit and 2 * largest < LIMITS[1]:
        found = BatchRange(found.low, None, found.step, found.excluded)
    return found if found.low != found.high else None


def _condition(text: str) -> Callable[[int], bool]:
    code = compile(text, "<guard>", "eval")
    names: dict[str, Any] = {
        "__builtins__": {}, "min": min, "max": max, "math": math, "abs": abs, "int": int, "float": float
    }  # fmt: skip

    def holds(size: int) -> bool:
        try:
            return bool(eval(code, names, {"N": size}))  # torch.export wrote it in this process
        except ZeroDivisionError:
            return False

    return holds


def _described(held: Sequence[int], example: int) -> BatchRange:
    """The sizes as one range; where they have no such form, those that are evenly spaced around the example."""
    step = math.gcd(*(b - a for a, b in itertools.pairwise(held))) or 1
    low, high = held[0], held[-1]
    if (high - low) // step + 1 - len(held) <= EXCEPTIONS:
        kept = set(held)
        return BatchRange(low, high, step, tuple(n for n in range(low, high, step) if n not in kept))
    place = held.index(example)
    step = held[place + 1] - example if place + 1 < len(held) else example - held[place - 1]
    low = high = place
    while low > 0 and held[low] - held[low - 1] == step:
        low -= 1
    while high + 1 < len(held) and held[high + 1] - held[high] == step:
        high += 1
    return BatchRange(held[low], held[high], step)
