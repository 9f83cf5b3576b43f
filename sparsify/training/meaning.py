"""Finds what the outputs of a program mean to a trainer: the given task, or the task for which the program was traced."""

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
    """The task of a trainer.

    Errors of a regression are divided by the deviation by which the program currently multiplies its prediction
    (`sparsify.passes.fit_scale`), unless the task has its own deviations.

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
        """Read the current deviation of the program; returns whether it may have changed."""
        deviation = deviation_of(program) if self._follows else None
        seen = None if deviation is None else (id(deviation), deviation._version)
        if seen == self._seen:
            return False
        self._seen, self.task = seen, self._given
        if deviation is not None and isinstance(self._given, Regression):
            self.task = dataclasses.replace(self._given, deviations=tuple(deviation.tolist()))
        return True


def meaning(task: str | Task | None, program: Program, method: Method) -> Task:
    """Return the given task, or that of the program; its scale is not included.

    Args:
        task: a task or its name. None: the program's own task; without one, regression if the program returns ``prediction`` and no
            logits, else classification.
        program: a program traced for the task.
        method: the method, which may only support some tasks.

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
    """Select what the loss of the task reads from an output of the train phase, as float32, because losses are not computed in bfloat16.

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
    """Convert floating-point values to float32; return others unchanged."""
    return value.float() if value.is_floating_point() else value
