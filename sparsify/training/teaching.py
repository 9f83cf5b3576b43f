"""Runs a method's teacher on a batch, checks its output, and adds its term to the loss. A teacher may be the model's own past."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsify.errors import TrainingError
from sparsify.ir import Program
from sparsify.ir.classifier import classes
from sparsify.ir.evaluation import outputs_of
from sparsify.methods import Method
from sparsify.parts.distillation import SelfDistillation, distillation_loss
from sparsify.parts.mixing import own_target
from sparsify.tasks import Classification, Task
from sparsify.tasks.base import unteachable
from sparsify.training.counting import Extra
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
        self._method, self._teacher, self._extra, self.task = method, teacher, Extra(counts), task
        self._program = program
        known = teacher is not None and isinstance(task, Classification)
        self._classes = classes(program) if known else None
        self.active = teacher is not None

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
        self._extra.count(forwards=1)
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
        taught = self.task.imitation(output, answer.float(), own_target(target), temperature=plan.temperature)
        return plan.joined(loss, taught)

    def before_step(self, step: int, closure: Closure | None) -> None:
        self._extra.reset()

    def after_step(self, step: int, moved: bool) -> None:
        self._extra.reset()


class PastTeaching(Mechanism):
    """Adds the term of a teacher that is the program itself at the end of the previous interval, in eval mode. For classification.

    Args:
        plan: intervals, and the weight of the term.
        method: name of the method, for messages.
        program: the program; a copy of it is kept.
        counts: its ``forwards`` are incremented as for `Teaching`.
        epoch_steps: steps of an epoch, the interval of a plan without one; None if the loop did not say.
        total_steps: steps of the run.

    Raises:
        TrainingError: If the plan has no interval and the loop did not say how long an epoch is.
    """

    key: ClassVar[str] = "past"

    def __init__(
        self,
        plan: SelfDistillation,
        method: str,
        program: Program,
        counts: dict[str, int],
        epoch_steps: int | None,
        total_steps: int,
    ) -> None:
        every = plan.every or epoch_steps
        if not every:
            raise TrainingError(
                f"method {method!r} learns from what the model predicted an epoch ago: give sparsify.attach epoch_steps=len(loader), the "
                f"steps of an epoch, or set snapshot_every of the method."
            )
        self._plan, self._method, self._program = plan, method, program
        self._every, self._total, self._extra = every, total_steps, Extra(counts)
        self._step = 1
        self._past: Program | None = None
        self.active = plan.weight > 0

    def link(self, step: int) -> None:
        self._step = step

    def join(self, loss: Tensor, output: Any, target: Any, inputs: Any) -> Tensor:
        """Add the teacher's term to the loss; this takes one forward pass of the teacher after the first interval.

        Raises:
            TrainingError: If there are no inputs.
        """
        if inputs is None:
            raise TrainingError(
                f"method {self._method!r} shows the inputs of a batch to the model of an earlier step: call "
                f"trainer.loss(program(x), y, inputs=x)."
            )
        if self._past is None:
            return loss
        with torch.no_grad():
            answer = outputs_of(self._past, inputs)[str(Classification.output)].float()
        self._extra.count(forwards=1)
        known = output[:, : answer.shape[1]]  # the eval phase leaves out an unknown class
        return self._plan.joined(loss, distillation_loss(known, answer, 1.0), self._weight(self._step))

    def _weight(self, step: int) -> float:
        return self._plan.weight_at(step, self._every, self._total)

    def before_step(self, step: int, closure: Closure | None) -> None:
        self._extra.reset()

    def after_step(self, step: int, moved: bool) -> None:
        """Keep a copy of the program at the end of an interval."""
        self._extra.reset()
        self._step = step + 1
        if step % self._every == 0 and step < self._total:
            self._past = self._program.clone().eval()

    def readings(self) -> dict[str, float]:
        """Return the weight of the teacher's term in the last step."""
        return {"past_weight": self._weight(max(self._step - 1, 1))}

    def state_dict(self) -> dict[str, dict[str, Any]]:
        return {"program": {} if self._past is None else dict(self._past.state_dict())}

    def load_state_dict(self, state: Any) -> None:
        self._past = None
        if state["program"]:
            self._past = self._program.clone().eval()
            self._past.load_state_dict(state["program"])


def past_of(
    plan: SelfDistillation | None,
    method: str,
    program: Program,
    counts: dict[str, int],
    epoch_steps: int | None,
    total_steps: int,
) -> PastTeaching | None:
    """Return the mechanism of a plan; None without one. The arguments are those of `PastTeaching`.

    Raises:
        TrainingError: As for `PastTeaching`.
    """
    return None if plan is None else PastTeaching(plan, method, program, counts, epoch_steps, total_steps)
