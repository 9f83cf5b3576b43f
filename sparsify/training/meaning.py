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
from sparsify.passes.scale_prediction import scale_of
from sparsify.tasks import Classification, Regression, Task, build


def meaning(task: str | Task | None, program: Program, method: Method) -> Task:
    """The task of a trainer. Errors of a regression are divided by the deviation that the program multiplies its prediction by
    (`sparsify.passes.fit_scale`), unless the task has deviations of its own.

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
    scale = scale_of(program)
    if scale is None or not isinstance(found, Regression) or found.deviations:
        return found
    return dataclasses.replace(found, deviations=tuple(scale[1].tolist()))


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
