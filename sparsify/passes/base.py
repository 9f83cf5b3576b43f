"""The base class of passes: a frozen dataclass whose fields are its options, and whose declarations are checked by measurement."""

from __future__ import annotations

import abc
import dataclasses
import enum
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, get_type_hints

from sparsify.arguments import bound, checked, checked_fields
from sparsify.errors import PassError, SparsifyError
from sparsify.ir import Program, Stage
from sparsify.ir.sites import layouts
from sparsify.passes.options import Option, check, convert, options_of, spell
from sparsify.passes.stages import advice
from sparsify.registry import Registry


class Effect(enum.Flag):
    """What a pass changes: the graph of each phase, names of state, values of state. Measured by `sparsify.contracts`."""

    NONE = 0
    TRAIN_GRAPH = enum.auto()
    EVAL_GRAPH = enum.auto()
    NAMES = enum.auto()
    WEIGHTS = enum.auto()
    GRAPH = TRAIN_GRAPH | EVAL_GRAPH


class Preserves(enum.IntEnum):
    """How much of a value a pass preserves; a higher level includes the lower ones."""

    NOTHING = 0
    NUMERICALLY = 1
    EXACTLY = 2

    def __str__(self) -> str:
        return ("not at all", "up to rounding", "exactly")[self]


@checked_fields(PassError)
@dataclass(frozen=True)
class Kept:
    """How much of one phase a pass preserves.

    Attributes:
        outputs: level for the outputs that the program has before the pass, and for the buffers that a call changes.
        gradients: level for the gradients of these outputs with respect to the parameters. If outputs are preserved at all, their
            gradients with respect to the inputs are preserved too, up to rounding.
    """

    outputs: Preserves
    gradients: Preserves

    def __str__(self) -> str:
        if self.outputs is self.gradients:
            return "nothing" if self.outputs is Preserves.NOTHING else f"outputs and gradients {self.outputs}"
        parts = {"outputs": self.outputs, "gradients": self.gradients}
        return ", ".join(f"{name} {level}" for name, level in parts.items() if level is not Preserves.NOTHING)


UNCHANGED = Kept(Preserves.EXACTLY, Preserves.EXACTLY)
CHANGED = Kept(Preserves.NOTHING, Preserves.NOTHING)
DEPLOYED: Mapping[str, Kept] = {"eval": Kept(Preserves.NUMERICALLY, Preserves.NOTHING)}
"""What passes after `deploy` preserve; they rewrite the weights of the only phase."""


@checked_fields(PassError)
@dataclass
class PassLog:
    """What a pass did: what it changed, what it left alone and why, and what it decided about a change."""

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


@checked_fields(PassError)
@dataclass(frozen=True)
class Pass(abc.ABC):
    """Rewrites a program in place. `Pipeline` clones the program first, so a caller's program never changes.

    Subclasses are final frozen dataclasses. Class variables: ``name``, the spelling in a pipeline; ``requires``, the stages that the pass
    accepts; ``ensures``, the stage of its result (None: unchanged); ``effects``, everything that it changes; ``takes_compact``, whether it
    accepts weights that are stored compact. Fields are the options
    (`option`), which are checked when the pass is made.

    Raises:
        PassError: When made, if an option has a wrong type or value.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[Stage, ...]]
    ensures: ClassVar[Stage | None] = None
    effects: ClassVar[Effect]
    takes_compact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self)

    @property
    @abc.abstractmethod
    def preserves(self) -> Mapping[str, Kept]:
        """How much of each phase (``train``, ``eval``) the pass preserves with its present options, for every program.

        Passes that only accept deployed programs have no ``train``.
        """

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Refuse options that the pass does not have, before it is made."""
        if args or options:  # copy and pickle call this without arguments
            bound(
                inspect.signature(cls.__init__), getattr(cls, "name", cls.__name__), (None, *args), options, PassError
            )
        return super().__new__(cls)

    @abc.abstractmethod
    def run(self, program: Program) -> PassLog:
        """Rewrite ``program`` in place."""

    @checked(PassError, program="a pass takes a program, found {found}. Trace the model: sparsify.trace(model, (x,)).")
    def __call__(self, program: Program) -> PassLog:
        """Check the stage, run, finish the graphs and verify.

        Raises:
            PassError: If the pass does not accept the program's stage, or fails with an unexpected error.
            SparsifyError: If the pass refuses the program; the message names the pass and its options.
        """
        try:
            return self._run(program)
        except SparsifyError as error:
            if not str(error).startswith(str(self)):
                say(error, f"Raised by the pass {self}.")
            raise
        except Exception as error:
            raise PassError(
                f"{self} failed on {program.name!r} with {type(error).__name__}: {error}. This is a fault of the pass or of a library that "
                f"it uses; report it with the program."
            ) from error

    def _run(self, program: Program) -> PassLog:
        from sparsify.ir import surgery

        if program.stage not in self.requires:
            wanted = " or ".join(stage.value for stage in self.requires)
            raise PassError(
                f"{self.name} needs a program of stage {wanted}; {program.name!r} is {program.stage.value}. "
                f"{advice(type(self), program.stage, PASSES.values())}"
            )
        if not self.takes_compact and program.stage is Stage.MASKED and (compact := layouts(program)):
            raise PassError(
                f"{self.name} cannot rewrite {program.name!r}, which stores {', '.join([*compact][:4])} compact. Apply it to "
                f"program.clone(), which stores all weights dense; a program that is being trained is compact until trainer.finish()."
            )
        log = self.run(program)
        if self.ensures is not None:
            program.stage = self.ensures
        surgery.finish(program)
        program.verify()
        return log

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        """Return the pass's options, in declaration order."""
        return options_of(cls)

    @classmethod
    @checked(PassError)
    def parse_options(cls, text: str) -> Pass:
        """Build the pass from ``key=value`` pairs separated by blanks; a tuple is comma-separated.

        Raises:
            PassError: If a key is unknown, has no value, is given twice, or a value does not have the option's type.
        """
        hints, values = get_type_hints(cls), dict[str, Any]()
        for token in text.split():
            key, equals, value = token.partition("=")
            field_name = key.replace("-", "_")
            if field_name not in {f.name for f in dataclasses.fields(cls)}:
                known = ", ".join(option.name for option in cls.options()) or "none"
                raise PassError(f"{cls.name} has no option {key!r}; its options are: {known}. Write key=value.")
            if not equals:
                raise PassError(
                    f"{cls.name}: option {key!r} has no '=' and no value. Write {key}=value, without blanks."
                )
            if field_name in values:
                raise PassError(f"{cls.name} is given {key!r} twice. Write lists as {key}=a,b.")
            values[field_name] = convert(cls.name, key, value, hints[field_name])
        return cls(**values)

    def __str__(self) -> str:
        pairs = [
            f"{f.name.replace('_', '-')}={spell(getattr(self, f.name))}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        ]
        return f"{self.name}{{{' '.join(pairs)}}}" if pairs else self.name


PASSES: Registry[type[Pass]] = Registry("pass", PassError)
"""Every registered pass by name; `sparsify.passes.registry` adds those of this package."""


@checked(PassError)
def register(cls: type[Pass]) -> type[Pass]:
    """Make a pass known to `Pipeline.parse` and the command; usable as a decorator.

    Raises:
        PassError: If the name is taken by another pass.
    """
    return PASSES.register(cls.name, cls)


def say(error: SparsifyError, more: str) -> None:
    """Add a sentence to the message of an error."""
    BaseException.__init__(error, f"{error}\n{more}", *error.args[1:])


@checked(PassError)
def split_pipeline(text: str) -> Iterator[tuple[str, str]]:
    """Yield (name, text of the options) of each pass in ``"a | b{k=v}"``.

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
