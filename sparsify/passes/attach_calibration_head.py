"""``attach-calibration-head``: adds nodes that compute calibrated probabilities or an interval from the output that the task reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from sparsify.errors import PassError
from sparsify.heads import HEADS, Head, fitting, owner
from sparsify.heads.registry import NONE
from sparsify.ir import Program, Stage, TensorSpec, surgery
from sparsify.ir.nodes import LEVEL, MADE_BY
from sparsify.ir.recording import Recorder
from sparsify.ir.traits import named_outputs
from sparsify.passes.base import CHANGED, UNCHANGED, Effect, Kept, Pass, PassLog
from sparsify.passes.options import option
from sparsify.tasks import TASKS, Task, kind

PREFIX = "calibration."
"""Prefix of the buffer names of a calibration head."""
USUAL_LEVEL = 0.9
"""Level assumed for a head without a recorded level: it was not fitted for one, or was fitted by an earlier version."""
BOUNDS = frozenset({"lower", "upper"})
"""Names of outputs that only heads fitted to a level have."""


@dataclass(frozen=True)
class AttachCalibrationHead(Pass):
    """Add the output ``probabilities``, of the shape of the logits, to the eval phase; for a regression, ``lower`` and ``upper``.

    The option ``kind`` names the head that computes them: ``temperature``, ``vector``, ``label-temperature``, ``interval``, another of
    `sparsify.heads`, or a head of a plug-in. Its buffers are called ``calibration.<name>``. Until they are fitted
    (`sparsify.calibration.fit`), probabilities are those of the uncalibrated model, and intervals have width 0.

    Raises:
        PassError: If the program already has a head and ``replace`` is not set, the program was traced for another task, the task has no
            head of that kind, or the output does not fit the task.

    Examples:
        >>> import torch
        >>> import sparsify as sp
        >>> program = sp.trace(torch.nn.Linear(8, 4), torch.rand(2, 8)).eval()
        >>> program = sp.Pipeline.parse("attach-calibration-head")(program)
        >>> list(program.outputs(torch.rand(3, 8)))
        ['logits', 'probabilities']
    """

    name: ClassVar = "attach-calibration-head"
    requires: ClassVar = tuple(Stage)
    effects: ClassVar = Effect.EVAL_GRAPH | Effect.NAMES

    kind: str = option(
        "temperature",
        "temperature (one parameter, keeps the decision), vector (two per class), label-temperature (one per label), interval, or "
        "another that `sparsify heads` lists",
        choices=HEADS,
    )
    task: str = option("classification", "what the output means", choices=TASKS)
    replace: bool = option(False, "remove the head that the program has, with its outputs and buffers, first")

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return {"train": UNCHANGED, "eval": CHANGED if self.replace else UNCHANGED}

    def run(self, program: Program) -> PassLog:
        log, task, head = PassLog(self.name), kind(self.task), HEADS[self.kind]
        if self.replace:
            _detach(program)
        value = self._read(program, task)
        state = head.identity(value.meta["spec"].shape)
        for name, tensor in state.items():
            surgery.add_state(program, PREFIX + name, tensor)
        output = program.output_node("eval")
        nodes = {name: surgery.state_node(program, "eval", PREFIX + name, before=output) for name in state}
        found = head.apply(Recorder(program, f"{self.name}: head {head.name!r}"), value, nodes, task)
        for name, node in zip(head.outputs, found, strict=True):
            surgery.append_output(program, "eval", name, node, head=head.name)
            log.change(name)
        return log

    def _read(self, program: Program, task: type[Task]) -> fx.Node:
        """Return the node of the output that the task reads.

        Raises:
            PassError: If the head cannot be attached to it.
        """
        names, kinds = program.output_names("eval"), fitting(task)
        for name in HEADS[self.kind].outputs:
            if name in names:
                raise PassError(
                    f"{self.name}: {program.name!r} already has an output {name!r}. If a calibration head makes "
                    f"it, set the option replace=true; otherwise rename it in the model."
                )
        if made := head_outputs(program, "eval"):
            raise PassError(
                f"{self.name}: {program.name!r} already has a head, which makes {', '.join(made)}. Set the option replace=true to "
                f"replace it."
            )
        if program.task is not None and program.task.name != task.name:
            raise PassError(
                f"{self.name}: {program.name!r} was traced for the task {program.task.name!r}, but the option task is {task.name!r}. Set "
                f"task={program.task.name} and a kind of head that fits it, or trace the model with task={task.name!r}."
            )
        if self.kind not in kinds:
            raise PassError(
                f"{self.name}: no head of kind {self.kind!r} fits the task {task.name!r}; the kinds that fit are: "
                f"{', '.join(kinds) or 'none'}. Set the option kind or the option task."
            )
        if task.output not in names:
            raise PassError(
                f"{self.name}: {program.name!r} returns {', '.join(names)}, and task {task.name!r} reads {task.output!r}. Trace it for "
                f"its task, or set the option task."
            )
        value: fx.Node = named_outputs(program.output_node("eval"))[task.output]
        spec: TensorSpec = value.meta["spec"]
        if not task.takes(spec.shape):
            raise PassError(
                f"{self.name}: calibration needs {task.targets}; {program.name!r} returns {spec}. Pool or select outputs in the "
                f"model, or set the option task."
            )
        return value


def head_outputs(program: Program, phase: str) -> dict[str, set[fx.Node]]:
    """Return the names of the outputs that calibration heads added, each with all nodes that it is computed from."""
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
    """Return the shapes of the buffers of calibration heads, by name without `PREFIX`."""
    named = program.named_buffers()
    return {name.removeprefix(PREFIX): buffer.shape for name, buffer in named if name.startswith(PREFIX)}


def head_names(program: Program) -> tuple[str, ...]:
    """Return the recorded names of a program's calibration heads, which may include heads that are not installed.

    Empty if the program has no head, or if an earlier version saved it; `head_of` identifies the head of such a program by its buffers.
    """
    return tuple(dict.fromkeys(program.output_node("eval").meta.get(MADE_BY, {}).values()))


def head_of(program: Program) -> Head | None:
    """Return the installed head that has the recorded name and the buffers of the program's head; None if there is no such head."""
    names, buffers = head_names(program), head_buffers(program)
    if len(names) > 1 or not (names or buffers):
        return None
    return owner(buffers, names[0] if names else None)


def head_metadata(program: Program) -> dict[str, str]:
    """Return the metadata of the calibration head for a file: its name or ``none``, if known, and the level of a fitted interval."""
    head, names, buffers = head_of(program), head_names(program), head_buffers(program)
    foreign = len(names) == 1 and names[0] not in HEADS
    name = head.name if head else names[0] if foreign else None if names or buffers else NONE
    bounded = LEVEL in program.output_node("eval").meta and BOUNDS & {*head_outputs(program, "eval")}
    level = {"interval_level": repr(head_level(program))} if bounded else {}
    return level if name is None else {"calibration": name, **level}


def head_level(program: Program) -> float:
    """Return the level that the program's head was last fitted for: the share of new samples that intervals should contain."""
    return program.output_node("eval").meta.get(LEVEL, USUAL_LEVEL)


def _behind(node: fx.Node) -> set[fx.Node]:
    """Return the node and all nodes that it is computed from."""
    found, waiting = set[fx.Node](), [node]
    while waiting:
        if (last := waiting.pop()) not in found:
            found.add(last)
            waiting += last.all_input_nodes
    return found


def _detach(program: Program) -> None:
    """Remove the program's head, if it has one."""
    found = head_outputs(program, "eval")
    nodes = {node for behind in found.values() for node in behind if node.op == "get_attr"}
    buffers = {str(node.target) for node in nodes if str(node.target).startswith(PREFIX)}
    surgery.remove_outputs(program, "eval", found)
    surgery.erase_dead(program, "eval")
    for name in sorted(buffers & {name for name, _ in program.named_buffers()}):
        surgery.remove_state(program, name)
