"""The sizes of varying dimensions that a trace holds for, from the guards that torch.export leaves."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LIMITS = 2048, 1 << 18
"""Smallest and largest bound of the sizes that are tried; in between, they go up to twice the largest number in the guards."""
EXCEPTIONS = 8
_SIZE = re.compile(r"L((?:\[[^\[\]]*\])+)\.size\(\)\[(\d+)\]")
_EQUAL = re.compile(r"(\w+) == (\w+)")


@dataclass(frozen=True)
class SizeRange:
    """Sizes of a dimension: ``low``, ``low + step``, ... up to ``high`` (None: no bound), without ``excluded``."""

    low: int = 1
    high: int | None = None
    step: int = 1
    excluded: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        numbers = (self.low, self.step, *self.excluded, *(() if self.high is None else (self.high,)))
        if not all(type(n) is int and n > 0 for n in numbers) or (self.high is not None and self.high < self.low):
            raise ValueError(f"a range of sizes holds positive whole numbers in order, found {self}")

    def __contains__(self, size: int) -> bool:
        above = size >= self.low and (self.high is None or size <= self.high)
        return above and (size - self.low) % self.step == 0 and size not in self.excluded

    def __str__(self) -> str:
        return self.text()

    def text(self, name: str = "N") -> str:
        """Describe the range as a condition on a dimension called ``name``."""
        if self.low == self.high:
            return f"{name} = {self.low}"
        text = f"{self.low} <= {name}" + (f" <= {self.high}" if self.high is not None else "")
        if self.step > 1:
            text += f" in steps of {self.step}"
        return text + (f", but not {', '.join(map(str, self.excluded))}" if self.excluded else "")

    @property
    def everything(self) -> bool:
        """Whether every size of at least one is in the range."""
        return self == SizeRange()

    def nearest(self, size: int) -> int:
        """Return the smallest size in the range that is at least ``size``, or else the largest."""
        reach = self.step * (len(self.excluded) + 2)
        upwards = (n for n in range(max(size, self.low), max(size, self.low) + reach) if n in self)
        found = next(upwards, None)
        if found is None:
            top = self.high if self.high is not None else size
            found = next(n for n in range(top, self.low - 1, -1) if n in self)
        return found

    def at_most(self, size: int) -> int | None:
        """Return the largest size in the range that is no larger than ``size``; None where there is none."""
        top = size if self.high is None else min(size, self.high)
        return next((n for n in range(top, self.low - 1, -1) if n in self), None)

    def pieces(self, count: int, most: int) -> list[int]:
        """Split ``count`` samples into sizes of the range, each at most ``most``; covers as many samples as possible."""
        found: list[int] = []
        while (size := self.at_most(min(count, most))) is not None:
            found.append(size)
            count -= size
        return found

    def without_one(self) -> SizeRange:
        """Return the range without the size 1."""
        if self.low > 1 or self.high == 1:
            return self
        low = next(n for n in range(2, 3 + self.step * (len(self.excluded) + 1)) if n in self)
        return SizeRange(low, self.high, self.step, tuple(n for n in self.excluded if n > low))

    def within(self, other: SizeRange) -> SizeRange | None:
        """Intersect two ranges; None if they share no size."""
        step = math.lcm(self.step, other.step)
        floor = max(self.low, other.low)
        ends = [end for end in (self.high, other.high) if end is not None]
        low = next((n for n in range(floor, floor + step * (EXCEPTIONS + 2)) if n in self and n in other), None)
        if low is None:
            return None
        excluded = sorted({*self.excluded, *other.excluded})
        return SizeRange(low, min(ends) if ends else None, step, tuple(n for n in excluded if n > low))


EVERY = SizeRange()


def ranges_of(
    guards: Sequence[str],
    sizes: Mapping[str, int],
    name_of: Callable[[tuple[str, ...], int], str | None],
    limits: Mapping[str, SizeRange] | None = None,
) -> dict[str, SizeRange]:
    """Find the ranges of sizes around the example's that satisfy all guards.

    If a guard involves several dimensions, their ranges are narrowed until it holds for every combination of sizes.

    Args:
        guards: Python conditions on the sizes of inputs, as torch.export writes them.
        sizes: sizes of the example, by dimension.
        name_of: returns the name of the dimension at a place of the input with a given path.
        limits: further limits, by dimension.

    Raises:
        UnreadableGuard: If a guard cannot be read, or allows a dimension only the example's size; the error names the dimension.
    """

    def named(match: re.Match[str]) -> str:
        return name_of(keys_of(match[1]), int(match[2])) or match[0]

    texts = [_SIZE.sub(named, guard) for guard in guards]
    if unknown := next((guard for guard, text in zip(guards, texts, strict=True) if "L[" in text), None):
        raise UnreadableGuard(None, f"its conditions on sizes contain {unknown}")
    conditions = [(_used(text, sizes), _condition(text), text) for text in texts]
    found = dict.fromkeys(sizes, SizeRange())
    for name, size in sizes.items():
        own = [(text, holds) for used, holds, text in conditions if used == [name]]
        if own:
            found[name] = _alone(name, size, [text for text, _ in own], [holds for _, holds in own])
        found[name] = found[name].within((limits or {}).get(name, EVERY)) or SizeRange(size, size)
    for used, holds, text in conditions:
        if len(used) > 1:
            if equal := _EQUAL.fullmatch(text.strip("() ")):
                raise UnreadableGuard(
                    equal[1],
                    f"{equal[1]} and {equal[2]} have to be equal",
                    f"Give both dimensions the name {equal[1]} in dynamic.",
                )
            _shrink(found, sizes, used, holds, text)
    return found


def keys_of(path: str) -> tuple[str, ...]:
    """Split a path as torch.export writes it, such as ``['parts']['a'][0]``, into its keys."""
    return tuple(part.strip("'\"") for part in re.findall(r"\[([^\[\]]*)\]", path))


class UnreadableGuard(Exception):
    """A condition of a trace that fixes a dimension at its size in the example; ``advice`` says what to do about special conditions."""

    def __init__(self, name: str | None, reason: str, advice: str = "") -> None:
        super().__init__(reason)
        self.name, self.reason, self.advice = name, reason, advice


def _used(text: str, sizes: Mapping[str, int]) -> list[str]:
    return [name for name in sizes if re.search(rf"\b{name}\b", text)]


def _alone(
    name: str, size: int, texts: Sequence[str], conditions: Sequence[Callable[[Mapping[str, int]], bool]]
) -> SizeRange:
    """Find the range that conditions on a single dimension allow."""
    largest = max(int(number) for text in texts for number in re.findall(r"\d+", f"0 {text}"))
    limit = min(max(LIMITS[0], 2 * largest + 2), LIMITS[1])
    held = [n for n in range(1, limit + 1) if all(holds({name: n}) for holds in conditions)]
    shown = ", ".join(texts)
    if size not in held:
        raise UnreadableGuard(name, f"its conditions on {_called(name)} are {shown}")
    found = _described(held, size)
    if found.high is not None and found.high + found.step > limit and 2 * largest < LIMITS[1]:
        found = SizeRange(found.low, None, found.step, found.excluded)
    if found.low == found.high:
        raise UnreadableGuard(name, f"its conditions on {_called(name)} are {shown}")
    return found


def _called(name: str) -> str:
    return "the batch size" if name == "N" else name


def _shrink(
    found: dict[str, SizeRange],
    sizes: Mapping[str, int],
    used: Sequence[str],
    holds: Callable[[Mapping[str, int]], bool],
    text: str,
) -> None:
    """Narrow ranges until a condition on several dimensions holds for every combination of sizes that is tried."""
    for name in used:
        others = [[(other, n) for n in _trials(found[other], sizes[other])] for other in used if other != name]
        known = [dict(pairs) for pairs in itertools.product(*others)]
        held = [n for n in _trials(found[name], sizes[name]) if all(holds({**rest, name: n}) for rest in known)]
        if sizes[name] not in held:
            continue  # the next dimension is narrowed instead
        place, tried = held.index(sizes[name]), _trials(found[name], sizes[name])
        first, last = tried.index(held[place]), tried.index(held[place])
        while first > 0 and tried[first - 1] in held:
            first -= 1
        while last + 1 < len(tried) and tried[last + 1] in held:
            last += 1
        whole = last + 1 == len(tried)
        low, high = tried[first], found[name].high if whole else tried[last]
        if low != high:
            kept = tuple(n for n in found[name].excluded if n > low)
            found[name] = SizeRange(low, high, found[name].step, kept)
            return
    raise UnreadableGuard(
        used[-1],
        f"its condition {text} ties {' and '.join(used)} together",
        "Sizes with different names vary independently. Give inputs of one size under one name and cut or pad them in forward "
        f"(such as x[:, 1:]), or take {used[-1]} out of dynamic.",
    )


def _trials(allowed: SizeRange, size: int) -> list[int]:
    """Choose sizes at which conditions on several dimensions are tried: near the low end, near the example, and larger ones."""
    top = allowed.high if allowed.high is not None else LIMITS[1]
    near = range(allowed.low, min(allowed.low + 16 * allowed.step, top) + 1)
    around = range(max(allowed.low, size - 2 * allowed.step), min(size + 2 * allowed.step, top) + 1)
    powers = (
        n for power in range(18) for n in ((1 << power) * allowed.step, (1 << power) * allowed.step + allowed.low)
    )
    return sorted({n for n in (*near, *around, *powers, size, top) if n in allowed and n <= top})


def _condition(text: str) -> Callable[[Mapping[str, int]], bool]:
    code = compile(text, "<guard>", "eval")
    names: dict[str, Any] = {
        "__builtins__": {}, "min": min, "max": max, "math": math, "abs": abs, "int": int, "float": float
    }  # fmt: skip

    def holds(sizes: Mapping[str, int]) -> bool:
        try:
            return bool(eval(code, names, dict(sizes)))  # torch.export wrote it in this process
        except ZeroDivisionError:
            return False

    return holds


def _described(held: Sequence[int], example: int) -> SizeRange:
    """Describe sizes as one range; if they do not form one, keep those that are evenly spaced around the example."""
    step = math.gcd(*(b - a for a, b in itertools.pairwise(held))) or 1
    low, high = held[0], held[-1]
    if (high - low) // step + 1 - len(held) <= EXCEPTIONS:
        kept = set(held)
        return SizeRange(low, high, step, tuple(n for n in range(low, high, step) if n not in kept))
    place = held.index(example)
    step = held[place + 1] - example if place + 1 < len(held) else example - held[place - 1]
    low = high = place
    while low > 0 and held[low] - held[low - 1] == step:
        low -= 1
    while high + 1 < len(held) and held[high + 1] - held[high] == step:
        high += 1
    return SizeRange(held[low], held[high], step)
