"""The schema of ``program.json`` in a ``.sparsify`` file: every field has a type and bounds, checked before anything is built from it.

Names end up in the Python source that torch.fx generates, so each kind of name has a rule (`sparsify.ir.foreign`). Sizes end up in
allocations, so they are bounded. Fields that are not declared here are refused. Values inside ``args`` are checked when they are decoded.
"""

from __future__ import annotations

import inspect
import math
import re
from collections import Counter
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from sparsify.errors import LoadError, TaskError
from sparsify.heads.registry import LONGEST_NAME
from sparsify.ir.binding import KINDS, UNKNOWN
from sparsify.ir.foreign import checked_identifier, checked_path, checked_text, is_plain_structure
from sparsify.ir.nodes import Stage, phases_of
from sparsify.ir.size_ranges import EXCEPTIONS
from sparsify.tasks import Task
from sparsify.tasks.stored import from_data

MOST_NODES = 200_000
MOST_VALUES = 2**29
"""Largest number of values of one tensor; 2 GiB as float32."""
_SIZE = re.compile(r"[\w +*/()%,.-]{1,200}", re.ASCII)
_KEYS = re.compile(r"[^\"'\\{}\x00-\x1f]{0,300}")

Identifier = Annotated[str, AfterValidator(checked_identifier)]
Path = Annotated[str, AfterValidator(checked_path)]
LONGEST_NOTE = 500
"""Largest number of characters of the text that says what training left unfinished."""
Text = Annotated[str, AfterValidator(checked_text)]


def _dtype(name: str) -> str:
    if not isinstance(getattr(torch, name, None) if name.isidentifier() else None, torch.dtype):
        raise ValueError(f"{name[:80]!r} is not a dtype")
    return name


def _structure(text: str) -> str:
    if not is_plain_structure(text, _KEYS):
        raise ValueError("it holds more than nested tuples, lists and mappings with plain keys")
    return text


def _shape(sizes: list[int | str]) -> list[int | str]:
    numbers = [size for size in sizes if isinstance(size, int)]
    if any(size < 0 for size in numbers) or math.prod(numbers) > MOST_VALUES or len(sizes) > 64:
        raise ValueError(f"the shape {sizes[:8]} has sizes below 0 or more than {MOST_VALUES:,} values")
    if not all(_SIZE.fullmatch(size) for size in sizes if isinstance(size, str)):
        raise ValueError(f"the shape {sizes[:8]} has a size that is not an expression of numbers and names")
    return sizes


Structure = Annotated[str, AfterValidator(_structure)]
Shape = Annotated[list[int | str], AfterValidator(_shape)]
Spec = Annotated[tuple[Text, Shape, Annotated[str, AfterValidator(_dtype)]], Field(strict=False)]  # JSON has lists


MOST_SIZE = 2**20
"""Size that a varying dimension had in the example of the trace."""
Dimension = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,31}$")]


HeadName = Annotated[Text, Field(min_length=1, max_length=2 * LONGEST_NAME)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class NodeForm(_Form):
    """A node; ``target`` is a name of state, of an input, or of an operator (``op:aten.relu.default``, ``py:operator.add``)."""

    name: Identifier
    op: Literal["placeholder", "get_attr", "call_function", "call_module", "output"]
    target: Text
    args: dict[str, Any]
    kwargs: dict[str, Any] | None = None
    spec: Spec | None = None
    owner: Text | None = None
    names: list[Text] | None = None
    heads: dict[Text, HeadName] = {}
    """By name of an output, the calibration head that makes it: a text, which may be the name of no head here."""
    level: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The level that the calibration head was fitted for."""
    full_precision: bool = False


class RangeForm(_Form):
    """A `sparsify.ir.size_ranges.SizeRange`."""

    low: Annotated[int, Field(ge=1)]
    high: Annotated[int, Field(ge=1)] | None
    step: Annotated[int, Field(ge=1, le=MOST_SIZE)]
    excluded: Annotated[list[Annotated[int, Field(ge=1)]], Field(max_length=EXCEPTIONS)]


class TaskForm(_Form):
    """What the outputs mean (`sparsify.tasks.stored`): the name of the task's kind, and its options as plain data."""

    kind: Annotated[Text, Field(min_length=1, max_length=64)]
    options: Annotated[dict[Text, bool | int | float | str | list[float]], Field(max_length=64)] = {}


def _constant(value: Any) -> Any:
    number = value["float"] if isinstance(value, dict) and set(value) == {"float"} else value
    if not (number is None or isinstance(number, (bool, int, str))) or len(str(number)) > 300:
        raise ValueError(f"{str(value)[:80]} is not a constant")
    return value


Constants = list[
    Annotated[tuple[Annotated[int, Field(ge=0)], Annotated[Any, AfterValidator(_constant)]], Field(strict=False)]
]
Default = Annotated[list[Annotated[Any, AfterValidator(_constant)]], Field(max_length=1)]
Kind = Literal["positional", "plain", "rest", "keyword", "options"]
Parameter = Annotated[tuple[Text, Kind, Default | None], Field(strict=False)]
"""A parameter of ``forward``: its name, its kind, and a list with its default; the list is empty if that is not a constant."""


def _signature(parameters: list[tuple[str, str, list[Any] | None]]) -> list[tuple[str, str, list[Any] | None]]:
    inspect.Signature(
        [
            inspect.Parameter(name, KINDS[kind], default=inspect.Parameter.empty if default is None else UNKNOWN)
            for name, kind, default in parameters
        ]
    )  # inspect checks names, kinds and their order
    return parameters


Forward = Annotated[list[Parameter], Field(max_length=1000), AfterValidator(_signature)]
Graph = Annotated[list[NodeForm], Field(min_length=1, max_length=MOST_NODES)]


class ProgramForm(_Form):
    """``program.json``."""

    name: Text
    stage: Literal["traced", "masked", "folded", "deployed"]
    training: bool
    dynamic_batch: bool
    unfinished: Annotated[str, Field(max_length=LONGEST_NOTE), AfterValidator(checked_text)] = ""
    task: TaskForm | None = None
    batch_ranges: dict[Literal["train", "eval"], RangeForm] = {}
    """The ranges of N, in files of earlier versions."""
    ranges: dict[Literal["train", "eval"], dict[Dimension, RangeForm]] = {}
    sizes: dict[Dimension, Annotated[int, Field(ge=1, le=MOST_SIZE)]] = {}
    constants: Constants = []
    inputs: list[Spec]
    in_spec: Structure
    forward: Forward | None = None
    out_specs: dict[Literal["train", "eval"], Structure]
    parameters: dict[Path, bool]
    buffers: list[Path] | None = None
    transient: list[Path]
    aliases: dict[Path, Path]
    taps: list[Path]
    records: list[Path] = []
    graphs: dict[Literal["train", "eval"], Graph]

    @model_validator(mode="after")
    def _agrees(self) -> ProgramForm:
        phases = phases_of(Stage(self.stage))
        if {*self.graphs} != {*phases} or {*self.out_specs} != {*phases} or (self.training and "train" not in phases):
            raise ValueError(f"there should be graphs and outputs for {' and '.join(phases)}")
        for ranges in (self.batch_ranges, self.ranges):
            if ranges and {*ranges} != {*phases}:
                raise ValueError(f"there should be sizes for {' and '.join(phases)}")
        used = {size for _, shape, _ in self.inputs for size in shape if isinstance(size, str)}
        if unknown := [n for given in (*self.ranges.values(), self.sizes) for n in given if n not in used]:
            raise ValueError(f"no input has a dimension {unknown[0]!r}")
        leaves = {*self.parameters, *(self.buffers or ())}
        hooks = {*self.taps, *self.records}
        owners = {name.rsplit(".", i)[0] for name in leaves | hooks for i in range(1, name.count(".") + 1)}
        if clash := sorted((leaves | hooks) & owners | leaves & hooks):
            raise ValueError(f"{clash[0]!r} is a tensor or a hook, and a module that holds others")
        for phase, nodes in self.graphs.items():
            _check_graph(phase, nodes, state=leaves | {*self.aliases}, hooks=hooks)
        return self


def _check_graph(phase: str, nodes: list[NodeForm], *, state: set[str], hooks: set[str]) -> None:
    if twice := [name for name, count in Counter(node.name for node in nodes).items() if count > 1]:
        raise ValueError(f"{phase} has two nodes named {twice[0]!r}")
    operations = [node.op for node in nodes]
    if operations[-1] != "output" or operations.count("output") > 1:
        raise ValueError(f"{phase} should end with its only output")
    for node in nodes:
        match node.op:
            case "placeholder":
                checked_identifier(node.target)
            case "get_attr" if node.target not in state:
                raise ValueError(f"%{node.name} of {phase} reads {node.target[:80]!r}, which the file does not hold")
            case "call_module" if node.target not in hooks:
                raise ValueError(f"%{node.name} of {phase} calls {node.target[:80]!r}, which is not a tap or record")
            case "output" if not node.names:
                raise ValueError(f"the outputs of {phase} have no names")
            case "output" if strange := [name for name in node.heads if name not in (node.names or ())]:
                raise ValueError(f"{phase} has no output {strange[0]!r} that a calibration head could make")
            case _:
                pass


def checked_document(value: Any) -> ProgramForm:
    """Check the content of ``program.json`` against the schema.

    Raises:
        LoadError: If it does not fit; the message names the first fields that do not.
    """
    try:
        return ProgramForm.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False)
        shown = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg'].removeprefix('Value error, ')}"[:300] for e in found[:3]
        )
        raise LoadError(f"its program.json does not have the form of a program: {shown}.") from error


def task_of(document: ProgramForm) -> Task | None:
    """Build the task of a program from its file; None if the file names no task.

    Raises:
        LoadError: If the kind or an option is unknown, or the graphs do not return the output that the task reads.
    """
    if document.task is None:
        return None
    try:
        found = from_data(document.task.kind, document.task.options)
    except TaskError as error:
        raise LoadError(f"its task is none that is known here: {error}") from error
    for phase, nodes in document.graphs.items():
        if found.output is not None and found.output not in (nodes[-1].names or ()):
            raise LoadError(f"its task {found.name!r} reads {found.output!r}, which the graph {phase} does not return.")
    return found
