"""The heads that a program has: which outputs each of them makes, which buffers it owns, and how it describes itself in a file."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import fx

from sparsify.errors import PassError, RecipeError
from sparsify.heads import HEADS, Head, fitting, named, owner
from sparsify.heads.base import FEATURES
from sparsify.heads.registry import NONE
from sparsify.ir.nodes import LEVEL, MADE_BY
from sparsify.ir.program import Program
from sparsify.ir.traits import named_outputs
from sparsify.tasks import Task

PREFIX = "calibration."
"""Prefix of the buffer names of heads. Those of the head that calibrates follow it; those of another follow its name as well."""
USUAL_LEVEL = 0.9
"""Level assumed for a head without a recorded level: it was not fitted for one, or was fitted by an earlier version."""
BOUNDS = frozenset({"lower", "upper"})
"""Names of outputs that only heads fitted to a level have."""


@dataclass(frozen=True)
class Attached:
    """A head of a program.

    Attributes:
        spec: the head as it was recorded, ``temperature`` or ``lac:0.9``; None if an earlier version saved the program without it.
        head: the installed head of that name that has these buffers; None if there is none.
        outputs: names of the outputs that it makes.
        prefix: prefix of the names of its buffers.
        buffers: shapes of its buffers, by name without the prefix.
    """

    spec: str | None
    head: Head | None
    outputs: tuple[str, ...]
    prefix: str
    buffers: Mapping[str, Sequence[int]]


@contextmanager
def needing_features(spec: str, task: Task | type[Task]) -> Generator[None]:
    """Say which head needs features, and which heads make the same output without them, if the block finds that there are none.

    Raises:
        PassError: If the block raises one.
    """
    try:
        yield
    except PassError as error:
        made = {*named(spec).outputs}
        left = [n for n in fitting(task) if FEATURES not in HEADS[n].reads and made & {*HEADS[n].outputs}]
        raise PassError(
            f"the head {spec!r} reads the features that the classifier reads, and this model has none: {error} Heads that make "
            f"{' and '.join(made)} without features: {', '.join(left) or 'none'}."
        ) from error


def prefix_of(head: Head) -> str:
    """Return the prefix of the names of a head's buffers in a program."""
    return PREFIX if head.calibrates else PREFIX + _own_prefix(head.name)


def attached(program: Program) -> tuple[Attached, ...]:
    """Return the heads of a program, in the order in which they were attached."""
    made: dict[str, str] = program.output_node("eval").meta.get(MADE_BY, {})
    outputs = head_outputs(program, "eval")
    specs: dict[str | None, None] = dict.fromkeys((*made.values(), *(made.get(name) for name in outputs)))
    if not specs and head_buffers(program):
        specs = {None: None}
    found = list[Attached]()
    for spec in specs:
        head, prefix, shapes = belonging(spec, head_buffers(program))
        found.append(Attached(spec, head, tuple(o for o in outputs if made.get(o) == spec), PREFIX + prefix, shapes))
    return tuple(found)


def calibrating(program: Program) -> tuple[Attached, ...]:
    """Return the heads that calibrate, or may do so because they are not installed; a program should have one."""
    return tuple(one for one in attached(program) if one.head is None or one.head.calibrates)


def main_head(program: Program) -> Attached | None:
    """Return the head that calibrates; the first head if none is known to calibrate, and None if the program has no head."""
    found = attached(program)
    return next((one for one in found if one.head is not None and one.head.calibrates), found[0] if found else None)


def head_outputs(program: Program, phase: str) -> dict[str, set[fx.Node]]:
    """Return the names of the outputs that heads added, each with all nodes that it is computed from."""
    output, buffers = program.output_node(phase), dict(program.named_buffers())
    own = program.out_specs[phase].num_leaves
    added = {name: _behind(value) for name, value in [*named_outputs(output).items()][own:]}
    return {
        name: nodes
        for name, nodes in added.items()
        if name in output.meta.get(MADE_BY, {})
        or any(n.op == "get_attr" and str(n.target).startswith(PREFIX) and n.target in buffers for n in nodes)
    }


def head_buffers(program: Program) -> dict[str, torch.Size]:
    """Return the shapes of the buffers of heads, by name without `PREFIX`."""
    named_buffers = program.named_buffers()
    return {name.removeprefix(PREFIX): buffer.shape for name, buffer in named_buffers if name.startswith(PREFIX)}


def head_names(program: Program) -> tuple[str, ...]:
    """Return the recorded heads of a program, ``temperature`` or ``lac:0.9``, which may include heads that are not installed.

    Empty if the program has no head, or if an earlier version saved it; `head_of` identifies the head of such a program by its buffers.
    """
    return tuple(dict.fromkeys(program.output_node("eval").meta.get(MADE_BY, {}).values()))


def head_of(program: Program) -> Head | None:
    """Return the installed head that calibrates the program's outputs; None if there is no such head, or more than one.

    If none of its heads calibrates, this is the first of them.
    """
    found = main_head(program)
    return None if found is None or len(calibrating(program)) > 1 else found.head


def head_level(program: Program) -> float:
    """Return the level that the program's head was last fitted for: the share of new samples that intervals should contain."""
    return program.output_node("eval").meta.get(LEVEL, USUAL_LEVEL)


def head_metadata(program: Program) -> dict[str, str]:
    """Return what a file says of its heads.

    ``calibration`` is the head that calibrates, ``temperature`` or ``masked-temperature:0.3:20``, or ``none``, if known;
    ``interval_level`` the level of a fitted interval; ``ood_score`` says which way a score points; ``heads`` names the other heads by
    their outputs, as JSON, such as
    ``{"prediction_set": "lac:0.9"}``.
    """
    found = attached(program)
    beside = [one for one in found if one.spec is not None and one.head is not None and not one.head.calibrates]
    rest = [one for one in found if one not in beside]
    name: str | None = NONE
    if rest:
        head, spec = rest[0].head, rest[0].spec
        foreign = len(rest) == 1 and spec is not None and spec not in HEADS
        name = head.spec if head and len(rest) == 1 else spec if foreign else None
    entries = {} if name is None else {"calibration": name}
    if LEVEL in program.output_node("eval").meta and BOUNDS & {*head_outputs(program, "eval")}:
        entries["interval_level"] = repr(head_level(program))
    if "ood_score" in program.output_names("eval"):
        entries["ood_score"] = "higher = more in-distribution"
    if beside:
        entries["heads"] = json.dumps({output: one.spec for one in beside for output in one.outputs})
    return entries


def belonging(
    spec: str | None, shapes: Mapping[str, Sequence[int]]
) -> tuple[Head | None, str, dict[str, Sequence[int]]]:
    """Find the buffers of a head among those of all heads.

    Args:
        spec: the head as it was recorded; None if an earlier version did not record it.
        shapes: shapes of the buffers of all heads, by name without `PREFIX`.

    Returns:
        The installed head of that name that has these buffers, or None; the rest of their prefix; and their shapes, without it.
    """
    bare = {name: shape for name, shape in shapes.items() if "." not in name}
    if spec is None:
        return owner(bare), "", bare
    try:
        head = named(spec)
    except RecipeError:  # it is of a package that is not installed, or of another version
        head = None
    own = _own_prefix(spec.partition(":")[0])
    mine = {key.removeprefix(own): shape for key, shape in shapes.items() if key.startswith(own)}
    separate = bool(mine) or (head is not None and not head.calibrates and not head.buffers)
    prefix, found = (own, mine) if separate else ("", bare)
    return (head if head is not None and head.owns(found) else None), prefix, found


def _own_prefix(name: str) -> str:
    return f"{name.replace('-', '_').replace('.', '_')}."


def _behind(node: fx.Node) -> set[fx.Node]:
    """Return the node and all nodes that it is computed from."""
    found, waiting = set[fx.Node](), [node]
    while waiting:
        if (last := waiting.pop()) not in found:
            found.add(last)
            waiting += last.all_input_nodes
    return found
