"""A method's teacher at work: asked for the logits of a batch, and what it may answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.errors import TrainingError
from sparsify.ir import Program
from sparsify.ir.classifier import classes
from sparsify.methods import Method
from sparsify.training.mechanism import Mechanism

Teacher = Callable[[Any], Tensor]
"""Logits [N, K] of the inputs of a batch; a module must be in eval mode."""


class Teaching(Mechanism):
    """Joins the loss of a batch with the method's distillation; of a method without, loss stays loss.

    Args:
        method: its distillation.
        teacher: for a method that has one.
        program: whose classes the teacher should know.
        counts: ``forwards`` are counted up.

    Raises:
        TrainingError: If the method needs a teacher and there is none, or the other way round.
    """

    def __init__(self, method: Method, teacher: Teacher | None, program: Program, counts: dict[str, int]) -> None:
        if method.distillation is not None and teacher is None:
            raise TrainingError(
                f"method {method.name!r} learns from a teacher: give sparsify.attach a teacher, a function from the inputs of a batch to "
                f"logits [N, K], such as a trained module in eval mode."
            )
        if method.distillation is None and teacher is not None:
            raise TrainingError(
                f"method {method.name!r} has no use for a teacher. Leave it out, or wrap the method in one that learns from it."
            )
        self._method, self._teacher, self._counts = method, teacher, counts
        self._classes = classes(program) if teacher is not None else 0
        self.active = teacher is not None

    def join(self, loss: Tensor, output: Tensor, inputs: Any) -> Tensor:
        """The loss with the teacher's term: one forward pass of the teacher.

        Args:
            loss: a scalar, the method's own.
            output: logits [N, K, ...], or [N, K + 1, ...] with an unknown class, which is left out.
            inputs: of the batch; None where the loop did not say.

        Raises:
            TrainingError: If there are no inputs, the teacher is in training mode, or its answer has another shape.
        """
        if self._method.distillation is None or self._teacher is None:
            return loss
        if inputs is None:
            raise TrainingError(
                f"method {self._method.name!r} shows the inputs of a batch to a teacher: call trainer.loss(program(x), y, inputs=x)."
            )
        if isinstance(self._teacher, nn.Module) and self._teacher.training:
            raise TrainingError(
                "the teacher is in training mode, which is not how it answers. Call teacher.eval() first."
            )
        with torch.no_grad():
            answer = self._teacher(inputs)
        self._counts["forwards"] += 1
        wanted = (len(output), self._classes, *output.shape[2:])
        found = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        if found != wanted:
            raise TrainingError(
                f"the teacher of method {self._method.name!r} should return logits of shape {list(wanted)}, found "
                f"{list(found) if isinstance(found, tuple) else found}. Give one that knows the same classes."
            )
        return self._method.distillation.joined(loss, output[:, : self._classes], answer.float())
