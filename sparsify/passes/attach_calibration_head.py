"""``attach-calibration-head``: adds the outputs of a head: calibrated probabilities, an interval, a set of classes, a score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from sparsify.errors import PassError, RecipeError
from sparsify.heads import HEADS, Head, fitting, named
from sparsify.heads.base import FEATURES, OUTPUT
from sparsify.ir import Program, Stage, TensorSpec, surgery
from sparsify.ir.features import features_node
from sparsify.ir.heads import Attached, attached, head_outputs, needing_features, prefix_of
from sparsify.ir.recording import Recorder
from sparsify.ir.traits import named_outputs
from sparsify.passes.base import CHANGED, UNCHANGED, Effect, Kept, Pass, PassLog
from sparsify.passes.options import option
from sparsify.registry import not_loaded
from sparsify.tasks import TASKS, Task, kind


def _head(text: str) -> Head:
    """Return the head that the option ``kind`` names.

    Raises:
        PassError: If there is no such head, or its values are wrong.
    """
    if text.partition(":")[0] not in HEADS:
        raise PassError(f"there is no choice {text!r}. Choose one of: {', '.join(HEADS)}.{not_loaded()}")
    try:
        return named(text)
    except RecipeError as error:
        raise PassError(str(error)) from error


@dataclass(frozen=True)
class AttachCalibrationHead(Pass):
    """Add the output ``probabilities``, of the shape of the logits, to the eval phase; for a regression, ``lower`` and ``upper``.

    The option ``kind`` names the head that computes them: ``temperature``, ``vector``, ``label-temperature``, ``interval``, another of
    `sparsify.heads`, or a head of a plug-in. Until it is fitted (`sparsify.calibration.fit`), probabilities are those of the uncalibrated
    model, and intervals have width 0.

    A program has one head that calibrates. Heads that make something else can be attached after it, each by a pass of its own: a set of
    classes (``kind=lac:0.9``), a decision whether to answer (``kind=accept:0.05``), a score. Values of such a head follow its name.

    Raises:
        PassError: If the program already has a head that calibrates, or one that makes the same output, and ``replace`` is not set; the
            program was traced for another task; the task has no head of that kind; the output does not fit the task; or the head reads
            what the program does not have.

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
        "another that `sparsify heads` lists, with its values: lac:0.95",
        reads=_head,
    )
    task: str = option("classification", "what the output means", choices=TASKS)
    replace: bool = option(
        False,
        "first remove the head that calibrates, and all others with it; of another head only one that makes the same output",
    )

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return {"train": UNCHANGED, "eval": CHANGED if self.replace else UNCHANGED}

    def run(self, program: Program) -> PassLog:
        log, task, head = PassLog(self.name), kind(self.task), named(self.kind)
        if self.replace:
            _detach(program, head)
        value = self._read(program, task, head)
        sources = tuple(self._source(program, head, name, value) for name in head.reads)
        shapes = tuple(source.meta["spec"].shape for source in sources)
        state = head.identity(shapes[0] if len(shapes) == 1 else shapes)
        prefix = prefix_of(head)
        for name, tensor in state.items():
            surgery.add_state(program, prefix + name, tensor)
        output = program.output_node("eval")
        nodes = {name: surgery.state_node(program, "eval", prefix + name, before=output) for name in state}
        read = sources[0] if len(sources) == 1 else sources
        found = head.apply(Recorder(program, f"{self.name}: head {head.name!r}"), read, nodes, task)
        for name, node in zip(head.outputs, found, strict=True):
            surgery.append_output(program, "eval", name, node, head=head.spec)
            log.change(name)
        return log

    def _source(self, program: Program, head: Head, name: str, value: fx.Node) -> fx.Node:
        """Return the node of something that the head reads.

        Raises:
            PassError: If the program does not have it.
        """
        if name == OUTPUT:
            return value
        if name == FEATURES:
            with needing_features(head.spec, kind(self.task)):
                return features_node(program)
        outputs = named_outputs(program.output_node("eval"))
        if name not in outputs or name not in head_outputs(program, "eval"):
            raise PassError(
                f"{self.name}: the head {head.name!r} reads {name!r}, which another head makes, and {program.name!r} returns "
                f"{', '.join(outputs)}. Attach that head first: attach-calibration-head | attach-calibration-head{{kind={self.kind}}}."
            )
        return outputs[name]  # type: ignore[no-any-return]

    def _read(self, program: Program, task: type[Task], head: Head) -> fx.Node:
        """Return the node of the output that the task reads.

        Raises:
            PassError: If the head cannot be attached to it.
        """
        names, kinds = program.output_names("eval"), fitting(task)
        for name in head.outputs:
            if name in names:
                raise PassError(
                    f"{self.name}: {program.name!r} already has an output {name!r}. If a head makes it, set "
                    f"the option replace=true; if the method or the model makes it, leave out {head.spec}, or rename it in the model."
                )
        if made := [name for one in attached(program) if _in_the_way(one, head) for name in one.outputs]:
            raise PassError(
                f"{self.name}: {program.name!r} already has a head, which makes {', '.join(made)}. Set the option replace=true to "
                f"replace it."
            )
        if program.task is not None and program.task.name != task.name:
            raise PassError(
                f"{self.name}: {program.name!r} was traced for the task {program.task.name!r}, but the option task is {task.name!r}. Set "
                f"task={program.task.name} and a kind of head that fits it, or trace the model with task={task.name!r}."
            )
        if head.name not in kinds:
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


def _in_the_way(one: Attached, head: Head) -> bool:
    """Return whether a head of a program cannot stay beside ``head``: both calibrate, or one of them is unknown."""
    return (head.calibrates and (one.head is None or one.head.calibrates)) or bool({*one.outputs} & {*head.outputs})


def _detach(program: Program, head: Head) -> None:
    """Remove the heads that ``head`` replaces: all, if it calibrates, because the others may read what it makes."""
    for one in reversed(attached(program)):
        if not (head.calibrates or _in_the_way(one, head)):
            continue
        surgery.remove_outputs(program, "eval", one.outputs, head=one.spec)
        surgery.erase_dead(program, "eval")
        left = {name for name, _ in program.named_buffers()}
        for name in sorted(left & {one.prefix + name for name in one.buffers}):
            surgery.remove_state(program, name)
