"""Options of passes: how a field becomes an option, which values are allowed, and how it is spelt in a pipeline."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from sparsify.arguments import checked, checked_fields
from sparsify.errors import PassError, SparsifyError

Reader = Callable[[str], object]
Choices = Iterable[str]


@checked_fields(PassError)
@dataclass(frozen=True)
class Range:
    """The range of numbers that an option allows.

    Attributes:
        low: lower bound.
        high: upper bound; None: no bound.
        open_low: exclude ``low`` itself.
        open_high: exclude ``high`` itself.
    """

    low: float
    high: float | None = None
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        if self.high is None:
            return above and value < math.inf
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        if self.high is None:
            return f"{'above' if self.open_low else 'at least'} {self.low:g}"
        return f"in {'(' if self.open_low else '['}{self.low:g}, {self.high:g}{')' if self.open_high else ']'}"


@checked_fields(PassError)
@dataclass(frozen=True)
class Option:
    """One option of a pass as the command shows it.

    Attributes:
        name: as spelt in a pipeline.
        type: ``text``, ``list``, ``number``, ``whole number`` or ``true or false``.
        default: the value if the option is not given.
        help: its meaning in one line.
        choices: the texts that are allowed; empty if all are.
        within: the numbers that are allowed; None if every finite one is.
    """

    name: str
    type: str
    default: object
    help: str
    choices: tuple[str, ...] = ()
    within: Range | None = None


@checked(PassError)
def option(
    default: Any,
    help: str,
    *,
    choices: Choices | None = None,
    within: Range | None = None,
    reads: Reader | None = None,
) -> Any:
    """Make a dataclass field that is an option of a pass. Its type and value are checked when the pass is made.

    Args:
        default: the value if the option is not given.
        help: its meaning, one line for the command.
        choices: the texts that are allowed. A registry is looked up at each check, so entries added later are allowed too.
        within: the numbers that are allowed.
        reads: parses the text of the option; raises a `SparsifyError` that says what is allowed if it cannot.
    """
    return dataclasses.field(
        default=default, metadata={"help": help, "choices": choices, "within": within, "reads": reads}
    )


def options_of(cls: type[Any]) -> tuple[Option, ...]:
    """Return the options of a pass, in declaration order."""
    return tuple(
        Option(
            spelling(f),
            kind_of(hint),
            f.default,
            str(f.metadata.get("help", "")),
            tuple(f.metadata.get("choices") or ()),
            f.metadata.get("within"),
        )
        for f, hint in _fields(cls)
    )


def check(step: Any) -> None:
    """Check the type and value of each option of a pass.

    Raises:
        PassError: If an option has the wrong type, is out of range or is not a choice; names the pass, the option and what is allowed.
        SparsifyError: If the option's parser refuses the text; the parser decides the subclass.
    """
    for f, hint in _fields(type(step)):
        value, where = getattr(step, f.name), f"{step.name}: option {spelling(f)}"
        if value is None and type(None) in get_args(hint):
            continue
        kind, choices, within = kind_of(hint), f.metadata.get("choices"), f.metadata.get("within")
        if not _is_of_kind(value, kind, ranged=within is not None):
            raise PassError(f"{where} should be {_with_article(kind)}, found {value!r}.")
        if choices is not None and value not in choices:
            raise PassError(f"{where} has no choice {value!r}. Choose one of: {', '.join(choices)}.")
        if within is not None and value not in within:
            raise PassError(f"{where} should be {within}, found {spell(value)}.")
        if f.metadata.get("reads") is not None:
            try:
                f.metadata["reads"](value)
            except SparsifyError as error:
                raise type(error)(f"{where}: {error}") from error


def convert(step: str, key: str, text: str, hint: Any) -> Any:
    """Convert the text of an option to a value of its type.

    Raises:
        PassError: If the text is not a value of that type.
    """
    kind = kind_of(hint)
    try:
        if kind == "text":
            return text
        if kind == "list":
            return tuple(item for item in text.split(",") if item)
        if kind == "whole number":
            return int(text)
        if kind == "number":
            return float(text)
        if text in ("true", "false"):
            return text == "true"
    except ValueError:
        pass
    raise PassError(f"{step}: option {key} should be {_with_article(kind)}, found {text!r}.")


def kind_of(hint: Any) -> str:
    """Return the command's name for a type."""
    text = str(hint)
    if "tuple" in text:
        return "list"
    for word, kind in (("bool", "true or false"), ("float", "number"), ("int", "whole number")):
        if word in text:
            return kind
    return "text"


def spelling(f: dataclasses.Field[Any]) -> str:
    """Return the name of an option in a pipeline."""
    return f.name.replace("_", "-")


def spell(value: Any) -> str:
    """Format a value as it is written in a pipeline."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_of_kind(value: Any, kind: str, *, ranged: bool) -> bool:
    if kind == "list":
        return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    if kind == "true or false":
        return isinstance(value, bool)
    if kind == "text":
        return isinstance(value, str)
    if isinstance(value, bool):
        return False
    if kind == "whole number":
        return isinstance(value, numbers.Integral)
    return isinstance(value, numbers.Real) and (ranged or math.isfinite(value))


def _with_article(kind: str) -> str:
    return {"list": "a list (a tuple of texts)", "true or false": "true or false"}.get(kind, f"a {kind}")


@functools.lru_cache(maxsize=256)
def _fields(cls: type[Any]) -> tuple[tuple[dataclasses.Field[Any], Any], ...]:
    hints = get_type_hints(cls)
    return tuple((f, hints[f.name]) for f in dataclasses.fields(cls))
