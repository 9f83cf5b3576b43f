"""Steps the optimizers: only the trainer may do so, and inactive weights are set to 0 after each step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from sparsify.errors import TrainingError
from sparsify.training.active_steps import ActiveSteps
from sparsify.training.gradients import are_finite
from sparsify.training.optimizers import Optimizer, Optimizers
from sparsify.training.random_masks import RandomMasks
from sparsify.training.zeros import Zeros


class Stepper:
    """Steps the optimizers of a run, and refuses steps that it did not make until it is released.

    Args:
        optimizers: the optimizers of the run.
        zeros: sets inactive weights of the program to 0.
        active: selects the active positions of sparse weights during the step.
        held: random masks whose hidden weights keep their values during the step; None: hidden weights move too.
        method: name of the method, for messages.
    """

    def __init__(
        self, optimizers: Optimizers, zeros: Zeros, active: ActiveSteps, held: RandomMasks | None, method: str
    ) -> None:
        self._optimizers, self._zeros, self._active, self._held, self._method = optimizers, zeros, active, held, method
        self._stepping = False
        watched = [o for o in optimizers.each if isinstance(o, Optimizer) and hasattr(o, "_optimizer_step_pre_hooks")]
        self._handles = [optimizer.register_step_pre_hook(self._notice) for optimizer in watched]

    def __deepcopy__(self, memo: dict[int, Any]) -> Stepper:
        parts = (self._optimizers, self._zeros, self._active, self._held, self._method)
        made = Stepper(*copy.deepcopy(parts, memo))
        if not self._handles:
            made.release()
        return made

    def _notice(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        del args, kwargs
        if not self._stepping:
            raise TrainingError(
                f"{type(optimizer).__name__}.step() was called by the loop, and not by the trainer of method {self._method!r}: masks would "
                f"stay as they are, or the batch be stepped twice. Write trainer.step() in its place (with a GradScaler: "
                f"trainer.step(scaler=scaler)); where both are called, remove optimizer.step()."
            )

    def release(self) -> None:
        """Let the loop step the optimizers itself again, because the run is over."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Step each optimizer, and set inactive weights to 0."""
        self._stepping = True
        try:
            with self._active.selected() as clean:
                if self._held is not None and self._held.sites:
                    with self._held.hidden_still():
                        self._optimizers.step(closure)
                else:
                    self._optimizers.step(closure)
        finally:
            self._stepping = False
        self._zeros.keep(clean)

    def evaluated_step(self, closure: Callable[[], Any]) -> bool:
        """Step optimizers that evaluate the batch themselves.

        Returns:
            False if the step led to weights that are not finite, and was undone.
        """
        parameters = self._optimizers.parameters()
        before = [parameter.detach().clone() for parameter in parameters]
        self.step(closure)
        if are_finite([parameter.detach() for parameter in parameters]):
            return True
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
        self._optimizers.state.clear()
        return False
