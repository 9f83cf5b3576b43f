"""What the outputs of a program mean to a trainer: the task it was given, or the one its outputs were traced for."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from sparsify.errors import TrainingError
from sparsify.ir import Program
from sparsify.methods import Method
from sparsify.parts.trees import mapped
from sparsify.passes.scale_prediction import deviation_of
from sparsify.tasks import Classification, Regression, Task, build


class Meaning:
    """The task of a trainer. Errors of a regression are divided by the deviation that the program multiplies its prediction by
    (`sparsify.passes.fit_scale`) at the time, unless the task has deviations of its own.

    Args:
        task, program, method: as for `meaning`.
    """

    def __init__(self, task: str | Task | None, program: Program, method: Method) -> None:
        self._given = meaning(task, program, method)
        self._follows = isinstance(self._given, Regression) and not self._given.deviations
        self._seen: tuple[int, int] | None = None
        self.task = self._given
        self.follow(program)

    def follow(self, program: Program) -> bool:
        """Take the deviation that the program has now; whether it may be another one than before."""
        deviation = deviation_of(program) if self._follows else None
        seen = None if deviation is None else (id(deviation), deviation._version)
        if seen == self._seen:
            return False
        self._seen, self.task = seen, self._given
        if deviation is not None and isinstance(self._given, Regression):
            self.task = dataclasses.replace(self._given, deviations=tuple(deviation.tolist()))
        return True


def meaning(task: str | Task | None, program: Program, method: Method) -> Task:
    """The task that is given, or that of the program; without the scale of the program.

    Args:
        task: by value or name; None: the program's own, or regression for one that returns ``prediction`` and no logits, else
            classification.
        program: traced for it.
        method: which may be made for some tasks only.

    Raises:
        TaskError: If there is no task of that name.
        TrainingError: If the program does not return what the task reads, or the method is made for other tasks.
    """
    names = program.output_names("train")
    task = program.task if task is None else task
    if task is None:
        found: Task = Regression() if "prediction" in names and "logits" not in names else Classification()
    else:
        found = build(task)
        if found.output is not None and found.output not in names:
            raise TrainingError(
                f"task {str(found)!r} reads the output {found.output!r}, and program {program.name!r} returns {', '.join(names)}. Trace "
                f"the model for its task: sparsify.trace(model, inputs, task={found.name!r})."
            )
    if method.tasks and found.name not in method.tasks:
        raise TrainingError(
            f"method {method.name!r} is made for the task {' or '.join(method.tasks)}, and this is {str(found)!r}: it reads class "
            f"scores. Choose a method that takes every task, or leave out the wrapper that does not."
        )
    return found


def read(program: Program, task: Task, output: Any) -> Any:
    """What the loss of the task reads of an output of the train phase, in float32: a loss is not computed in bfloat16.

    Raises:
        TrainingError: If the program is in eval mode.
        TraceError: If the program has no output of that name.
    """
    if not program.training:
        raise TrainingError(
            "trainer.loss is for training steps. Call program.train() first, or measure with a criterion of your own."
        )
    if task.trained_on is None:
        return mapped(in_float32, output)
    return in_float32(program.reading(task.trained_on, "train", pytree.tree_leaves(output)))


def in_float32(value: Tensor) -> Tensor:
    """Floating-point values in float32; others as they are."""
    return value.float() if value.is_floating_point() else value
