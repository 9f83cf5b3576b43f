"""How patterns are spelled: ``unstructured``, ``nm:2:4``, ``grouped:64`` and others, each with its meaning and its parser."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from sparsify.errors import PatternError
from sparsify.parts.patterns.base import Pattern
from sparsify.parts.patterns.fan_in import FanIn
from sparsify.parts.patterns.grouped import Grouped
from sparsify.parts.patterns.plain import NM, Block, Unstructured
from sparsify.registry import Registry, not_loaded


@dataclass(frozen=True)
class Spelling:
    """A way to write patterns.

    Attributes:
        form: a regular expression that must match the whole text.
        make: makes the pattern from the match; raises `PatternError` if the numbers make no sense.
        shown: each spelling as help shows it, with its meaning.
    """

    form: re.Pattern[str]
    make: Callable[[re.Match[str]], Pattern]
    shown: dict[str, str]


def _nm(found: re.Match[str]) -> Pattern:
    n, m = int(found[1]), int(found[2])
    if 0 < n < m:
        return NM(n, m)
    raise PatternError(f"{found[0]!r}: N:M needs 0 < N < M, e.g. nm:2:4.")


def _block(found: re.Match[str]) -> Pattern:
    rows, columns = int(found[1]), int(found[2])
    if rows > 0 and columns > 0:
        return Block(rows, columns)
    raise PatternError(f"{found[0]!r}: a block needs at least one row and one column, e.g. block:4x1.")


def _grouped(found: re.Match[str]) -> Pattern:
    rows, columns = int(found[1]), int(found[2] or 1)
    if rows > 0 and columns > 0:
        return Grouped(rows, columns, "l2" if found[3] else "l1", "learned" if found[4] else "contiguous")
    raise PatternError(f"{found[0]!r}: a group needs at least one output and a chunk one input, e.g. grouped:64x4.")


_PATTERNS: tuple[Spelling, ...] = (
    Spelling(re.compile(r"unstructured"), lambda found: Unstructured(), {"unstructured": "any position by itself"}),
    Spelling(
        re.compile(r"nm:(\d+):(\d+)"),
        _nm,
        {"nm:N:M": "N of every M consecutive inputs, e.g. nm:2:4; the density is N/M"},
    ),
    Spelling(
        re.compile(r"block:(\d+)x(\d+)"),
        _block,
        {"block:RxC": "R outputs by C inputs together, e.g. block:4x1"},
    ),
    Spelling(
        re.compile(r"fan-in"),
        lambda found: FanIn(),
        {"fan-in": "every output keeps the same number of inputs of its own choice, or none (SRigL's constant fan-in)"},
    ),
    Spelling(
        re.compile(r"grouped:(\d+)(?:x(\d+))?(:l2)?(:learned)?"),
        _grouped,
        {
            "grouped:O": "the O outputs of a group read the same inputs, and all groups the same number, e.g. grouped:64; fast in stock "
            "ONNX Runtime",
            "grouped:OxC": "the same, with the inputs of linear layers kept in chunks of C, e.g. grouped:64x4; "
            "append :l2 to rank by L2 norm",
            "grouped:O:learned": "the same, but each group collects outputs that want the same inputs; as fast if the outputs may be "
            "reordered",
        },
    ),
)
PATTERNS: Registry[Spelling] = Registry("pattern", PatternError, {next(iter(s.shown)): s for s in _PATTERNS})
"""All ways to write patterns, by the first spelling that help shows of each."""


def spellings() -> dict[str, str]:
    """Return the meaning of each spelling."""
    return {text: meaning for spelling in PATTERNS.values() for text, meaning in spelling.shown.items()}


def parse_pattern(text: str) -> Pattern:
    """Parse the spelling of a pattern, such as ``unstructured``, ``nm:2:4``, ``block:4x1`` or ``grouped:64``.

    Raises:
        PatternError: If the spelling is unknown or its numbers make no sense.
    """
    for spelling in PATTERNS.values():
        if found := spelling.form.fullmatch(text):
            return spelling.make(found)
    raise PatternError(f"there is no pattern {text!r}. Write one of: {', '.join(spellings())}.{not_loaded()}")
