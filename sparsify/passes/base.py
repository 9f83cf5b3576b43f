"""What a pass is: a frozen dataclass whose fields are its options, with declarations that are measured."""

from __future__ import annotations

import abc
import dataclasses
import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_type_hints

from sparsify.errors import PassError
from sparsify.ir import Program, Stage


class Effect(enum.Flag):
    """What a pass changes; measured by fingerprints in the contract tests."""

    NONE = 0
    GRAPH = enum.auto()
    NAMES = enum.auto()
    WEIGHTS = enum.auto()


class Preserves(enum.Enum):
    """What stays the same: outputs bit for bit, outputs up to rounding, or neither."""

    OUTPUTS_EXACTLY = "outputs exactly"
    OUTPUTS_NUMERICALLY = "outputs up to rounding"
    NOTHING = "nothing"


@dataclass
class PassLog:
    """What a pass did: changes made, what was left alone and why, and what it decided about a change."""

    name: str
    changed: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)

    def change(self, where: str) -> None:
        """Note that ``where`` was rewritten."""
        self.changed.append(where)

    def skip(self, where: str, reason: str) -> None:
        """Note that ``where`` was left alone, and why."""
        self.skipped.append((where, reason))

    def note(self, where: str, what: str) -> None:
        """Note what was decided about ``where``, which was rewritten."""
        self.notes.append((where, what))

    def __str__(self) -> str:
        lines = [f"{self.name}: {len(self.changed)} changed, {len(self.skipped)} left alone"]
        lines += [f"  {where}: left alone, {reason}" for where, reason in self.skipped]
        lines += [f"  {where}: {what}" for where, what in self.notes]
        return "\n".join(lines)


@dataclass(frozen=True)
class Option:
    """One option of a pass as the command shows it."""

    name: str
    type: str
    default: object
    help: str


@dataclass(frozen=True)
class Pass(abc.ABC):
    """Rewrites a program in place. `Pipeline` clones at the door, so a caller's program is never touched.

    Subclasses are final frozen dataclasses. Class variables: ``name`` as spelt in a pipeline; ``requires`` the stages it
    accepts; ``ensures`` the stage it leaves behind (None: the one it found); ``effects`` and ``preserves``, both measured;
    ``phases`` it rewrites. Field metadata ``help`` is one line for the command.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[Stage, ...]]
    ensures: ClassVar[Stage | None] = None
    effects: ClassVar[Effect]
    preserves: ClassVar[Preserves]
    phases: ClassVar[tuple[str, ...]] = ("train", "eval")

    @abc.abstractmethod
    def run(self, program: Program) -> PassLog:
        """Rewrite ``program`` in place."""

    def __call__(self, program: Program) -> PassLog:
        """Check the stage, run, finish the graphs and verify.

        Raises:
            PassError: If the program is of a stage the pass does not accept.
        """
        from sparsify.ir import surgery

        if program.stage not in self.requires:
            wanted = " or ".join(stage.value for stage in self.requires)
            raise PassError(
                f"{self.name} needs a program of stage {wanted}; {program.name!r} is {program.stage.value}.{self.advice(program)}"
            )
        log = self.run(program)
        if self.ensures is not None:
            program.stage = self.ensures
        surgery.finish(program)
        program.verify()
        return log

    def advice(self, program: Program) -> str:
        """What to do when the stage does not fit."""
        if program.stage is Stage.TRACED:
            return " Run insert-masks first."
        if program.stage is Stage.FOLDED:
            return " Masks are gone after fold-masks; start from the program before it."
        return " It already has masks."

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        """The pass's options, in declaration order."""
        hints = get_type_hints(cls)
        return tuple(
            Option(f.name.replace("_", "-"), _type_text(hints[f.name]), f.default, str(f.metadata.get("help", "")))
            for f in dataclasses.fields(cls)
        )

    @classmethod
    def parse_options(cls, text: str) -> Pass:
        """Build the pass from ``key=value`` pairs separated by blanks; a tuple is comma-separated.

        Raises:
            PassError: If a key is unknown, given twice, or a value does not have the option's type.
        """
        hints, values = get_type_hints(cls), dict[str, Any]()
        for token in text.split():
            key, equals, value = token.partition("=")
            field_name = key.replace("-", "_")
            if field_name not in {f.name for f in dataclasses.fields(cls)} or not equals:
                known = ", ".join(option.name for option in cls.options()) or "none"
                raise PassError(f"{cls.name} has no option {token!r}; its options are: {known}. Write key=value.")
            if field_name in values:
                raise PassError(f"{cls.name} is given {key!r} twice. Write lists as {key}=a,b.")
            values[field_name] = _convert(cls.name, key, value, hints[field_name])
        return cls(**values)

    def __str__(self) -> str:
        pairs = [
            f"{f.name.replace('_', '-')}={_spell(getattr(self, f.name))}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        ]
        return f"{self.name}{{{' '.join(pairs)}}}" if pairs else self.name


def option(default: Any, help: str) -> Any:
    """A dataclass field with a one-line meaning."""
    return field(default=default, metadata={"help": help})


def split_pipeline(text: str) -> Iterator[tuple[str, str]]:
    """(name, options text) of each pass in ``"a | b{k=v}"``.

    Raises:
        PassError: If an element does not have the form ``name`` or ``name{...}``.
    """
    for part in text.split("|"):
        match = re.fullmatch(r"\s*([a-z][a-z0-9-]*)\s*(?:\{([^{}]*)\})?\s*", part)
        if match is None:
            raise PassError(
                f"cannot read {part.strip()!r} in pipeline {text!r}. Write name or name{{key=value key=value}}, joined by '|'."
            )
        yield match[1], match[2] or ""


def _convert(pass_name: str, key: str, text: str, hint: Any) -> Any:
    kind = _type_text(hint)
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
    raise PassError(f"{pass_name}: option {key}={text!r} should be a {kind}.")


def _type_text(hint: Any) -> str:
    text = str(hint)
    if "tuple" in text:
        return "list"
    for word, kind in (("bool", "true or false"), ("float", "number"), ("int", "whole number")):
        if word in text:
            return kind
    return "text"


def _spell(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
