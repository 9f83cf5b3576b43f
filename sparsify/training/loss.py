"""The loss of a run: the method's objective with its state, observed once per step; without an objective, the loss of the task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sparsify.errors import TrainingError
from sparsify.methods import Method
from sparsify.parts.mixing import MixedTarget
from sparsify.parts.objectives import Objective
from sparsify.tasks import Classification, Task
from sparsify.tasks.base import check_gradient
from sparsify.training.mechanism import Mechanism
from sparsify.training.probe import Closure


class RunningLoss(Mechanism):
    """Computes the loss from an output and its target. The first call of a step updates the objective's state; later ones only read it."""

    key = "loss"

    def __init__(self, method: Method, objective: Objective | None, task: Task | None = None) -> None:
        self.task = Classification() if task is None else task
        shown = (method.distillation, method.self_distillation, method.individual, method.mixing)
        self._name, self._shown = method.name, any(slot is not None for slot in shown)
        self._objective = objective
        self._state: Any = self._objective.init() if self._objective else None
        self._observed = False
        self.active = objective is not None or self._shown

    def __call__(self, output: Any, target: Any, step: int, *, label_smoothing: float = 0.0) -> Tensor:
        """Compute the loss, a scalar.

        Args:
            output: what the task reads of the train phase, such as logits [N, K].
            target: target of the batch, such as class numbers [N]; or that of a mixed batch, whose loss is weighed.
            step: optimizer step of this batch, from 1.
            label_smoothing: label smoothing of the task's loss, in [0, 1).

        Raises:
            TrainingError: If output and target do not fit the task, the loss has no gradient, or labels should be smoothed although the
                method has its own loss or the task has no labels.
        """
        if isinstance(target, MixedTarget):
            return target.weighed(lambda one: self(output, one, step, label_smoothing=label_smoothing))
        if self._objective is None:
            self._observed = self._shown
            value = self.task.loss(output, target, label_smoothing=label_smoothing)
            check_gradient(self.task, output, value)
            return value
        if label_smoothing:
            raise TrainingError(
                f"method {self._name!r} has a loss of its own, which label-smoothing {label_smoothing} would not enter. Set it to 0."
            )
        if not self._observed:
            self._state, self._observed = self._objective.observe(output.detach(), target, self._state, step), True
        return self._objective.loss(output, target, self._state)

    def before_step(self, step: int, closure: Closure | None = None) -> None:
        """Refuse a step that did not use the loss.

        Raises:
            TrainingError: If the method has a loss of its own, a teacher or mixed samples, and the loss was not called since the last step.
        """
        del step, closure
        if self.active and not self._observed:
            inputs = ", inputs=x" if self._shown else ""
            raise TrainingError(
                f"method {self._name!r} has a loss of its own, which this step did not use. Train with "
                f"trainer.loss(program(x), y{inputs}).backward() in place of your criterion."
            )

    def after_step(self, step: int, moved: bool) -> None:
        """Note that the step is done; the next call belongs to a new step."""
        del step, moved
        self._observed = False

    def readings(self) -> Mapping[str, float]:
        """Return figures of the objective, by name."""
        return self._objective.readings(self._state) if self._objective else {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state; it loads with ``weights_only=True`` if the objective's state does."""
        return {"state": self._state, "observed": self._observed}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self._state, self._observed = saved["state"], bool(saved["observed"])
