"""Runs a method's teacher on a batch, checks its output, and adds its term to the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsify.errors import TrainingError
from sparsify.ir import Program
from sparsify.ir.classifier import classes
from sparsify.methods import Method
from sparsify.tasks import Classification, Task
from sparsify.tasks.base import unteachable
from sparsify.training.mechanism import Mechanism
from sparsify.training.probe import Closure

Teacher = Callable[[Any], Tensor]
"""Maps the inputs of a batch to what the task reads, such as logits [N, K]; a module must be in eval mode."""


class Teaching(Mechanism):
    """Adds the method's distillation term to the loss of a batch; without distillation, the loss stays unchanged.

    Args:
        method: gives the distillation.
        teacher: the teacher, if the method needs one.
        program: the teacher should know the classes of this program.
        counts: its ``forwards`` are incremented, once for all micro-batches that a step accumulates, and once for each probe.
        task: defines how a model imitates a teacher.

    Raises:
        TrainingError: If the method needs a teacher but there is none, or does not need the given one, or the task supports none.
    """

    def __init__(
        self, method: Method, teacher: Teacher | None, program: Program, counts: dict[str, int], task: Task
    ) -> None:
        if method.distillation is not None and (not task.taught or task.output is None):
            raise TrainingError(f"method {method.name!r} learns from a teacher, and {unteachable(task)}")
        if method.distillation is not None and teacher is None:
            raise TrainingError(
                f"method {method.name!r} learns from a teacher: give sparsify.attach a teacher, a function from the inputs of a batch to "
                f"what the model returns as {task.output!r}, such as a trained module in eval mode."
            )
        if method.distillation is None and teacher is not None:
            raise TrainingError(
                f"method {method.name!r} has no use for a teacher. Leave it out, or wrap the method in one that learns from it."
            )
        self._method, self._teacher, self._counts, self.task = method, teacher, counts, task
        self._program = program
        known = teacher is not None and isinstance(task, Classification)
        self._classes = classes(program) if known else None
        self.active = teacher is not None
        self._answered: int | None = None  # number of probes when the last answer was counted, if it was for this step

    def join(self, loss: Tensor, output: Any, target: Any, inputs: Any) -> Tensor:
        """Add the teacher's term to the loss; this takes one forward pass of the teacher.

        Args:
            loss: loss of the method, a scalar.
            output: what the loss of the task reads: one output or all outputs of the model. For classification, logits [N, K], or
                [N, K + 1] with an unknown class, which is left out.
            target: target of the batch.
            inputs: inputs of the batch; None if the loop did not give them.

        Raises:
            TrainingError: If there are no inputs, the teacher is in training mode, or its output has another shape.
        """
        if self._method.distillation is None or self._teacher is None:
            return loss
        if inputs is None:
            raise TrainingError(
                f"method {self._method.name!r} shows the inputs of a batch to a teacher: call trainer.loss(program(x), y, inputs=x)."
            )
        if isinstance(self._teacher, nn.Module) and self._teacher.training:
            raise TrainingError("the teacher is in training mode. Call teacher.eval() first.")
        with torch.no_grad():
            answer = self._teacher(inputs)
        if self._answered != self._counts["probes"]:
            self._counts["forwards"] += 1
        self._answered = self._counts["probes"]
        if self.task.trained_on != self.task.output:
            output = self._program.reading(self.task.output, "train", pytree.tree_leaves(output))
        output = output if self._classes is None else output[:, : self._classes]
        if isinstance(answer, Tensor) and {answer.shape[1:], output.shape[1:]} == {(), (1,)}:
            answer = answer.reshape(-1, *output.shape[1:])  # [N] and [N, 1] are both accepted
        wanted = tuple(output.shape)
        found = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        if found != wanted:
            raise TrainingError(
                f"the teacher of method {self._method.name!r} should return {self.task.output} of shape {list(wanted)}, found "
                f"{list(found) if isinstance(found, tuple) else found}. Give one that knows the same classes, or predicts the same."
            )
        plan = self._method.distillation
        return plan.joined(loss, self.task.imitation(output, answer.float(), target, temperature=plan.temperature))

    def before_step(self, step: int, closure: Closure | None) -> None:
        self._answered = None

    def after_step(self, step: int, moved: bool) -> None:
        self._answered = None
