"""Checks the gradients of each step: they must exist, be unscaled and be finite."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from sparsify.errors import TrainingError, TrainingWarning
from sparsify.ir import Program
from sparsify.training.active_steps import ActiveSteps
from sparsify.training.mechanism import Mechanism
from sparsify.training.optimizers import Optimizers

SMALL = 4096
"""The gradients of at most so many values are summed together, which takes one call."""
HOPELESS = 100
"""Training ends after this many consecutive steps without finite gradients; a GradScaler needs about 20 to find its scale."""


class Gradients(Mechanism):
    """Checks the gradients of each step, and counts steps that are skipped because of them.

    Args:
        program, optimizers: the program and optimizers of the loop.
        active: selects the gradients that a step reads.
        counts: counts of the trainer; ``skipped_steps`` is incremented.

    Attributes:
        named: weights for which a warning was given, including those that the loss does not reach.
        finite: whether the gradients of the coming step are finite; None before they are checked.
        scale: the factor by which a GradScaler multiplied the loss of the coming step; None without a scaler.
        skipped_in_a_row: number of consecutive steps skipped so far.
    """

    key = "skipped_in_a_row"

    def __init__(self, program: Program, optimizers: Optimizers, active: ActiveSteps, counts: dict[str, int]) -> None:
        self._program, self._optimizers, self._active, self._counts = program, optimizers, active, counts
        self.named: set[str] = set()
        self.finite: bool | None = None
        self.scale: float | None = None
        self.skipped_in_a_row = 0

    def look(self, step: int) -> bool:
        """Check whether the gradients of ``step`` are finite.

        Raises:
            TrainingError: If there are no gradients.
        """
        if self.finite is not None:
            return self.finite
        gradients = self._active.gradients()
        if not gradients:
            raise TrainingError(
                f"there is no gradient on step {step}. Call trainer.step() after loss.backward() and before optimizer.zero_grad(), "
                f"with a loss that is computed by the program."
            )
        if step == 1:
            self._name_unreached()
        self.finite = are_finite(gradients)
        return self.finite

    def unscale(self, scaler: Any) -> None:
        """Divide the gradients by the scale of a `torch.amp.GradScaler`, unless the loop did so already.

        Raises:
            TrainingError: If the scaler was used in another order.
        """
        if self.scale is not None:
            return
        self.scale = float(scaler.get_scale())
        for optimizer in self._optimizers.each:
            try:
                scaler.unscale_(optimizer)
            except (RuntimeError, ValueError, AssertionError) as error:
                if "already been called" in str(error):
                    continue  # the loop unscaled them already, to clip them
                raise TrainingError(
                    f"the GradScaler cannot unscale the gradients: {error} Call scaler.scale(loss).backward(), then "
                    f"trainer.step(scaler=scaler), then scaler.update()."
                ) from error

    def take(self, scale: Tensor | None, found_inf: Tensor) -> None:
        """Divide the gradients by the scale that ``GradScaler.step(trainer)`` passes, unless a gradient is not finite.

        Raises:
            TrainingError: If the gradients were already unscaled, so that the scale is unknown.
        """
        if scale is None:
            raise TrainingError(
                "scaler.step(trainer) after scaler.unscale_(...) does not tell the scale. Call scaler.unscale_(optimizer), then "
                "trainer.step(scaler=scaler)."
            )
        self.scale = float(scale)
        if not float(found_inf):
            torch._foreach_mul_(self._optimizers.gradients(), 1.0 / self.scale)  # pyright: ignore[reportPrivateImportUsage]

    def after_step(self, step: int, moved: bool) -> None:
        """Count a skipped step, and expect new gradients.

        Raises:
            TrainingError: If `HOPELESS` consecutive steps were skipped.
        """
        self.finite = self.scale = None
        self.skipped_in_a_row = 0 if moved else self.skipped_in_a_row + 1
        if moved:
            return
        self._counts["skipped_steps"] += 1
        if self._counts["skipped_steps"] == 1:
            warnings.warn(
                f"the gradients of step {step} are not finite: the step was skipped, as later ones like it will be, and counted in "
                f'trainer.counts["skipped_steps"]. Lower the learning rate or clip gradients, unless a GradScaler is finding its scale.',
                TrainingWarning,
                stacklevel=4,
            )
        if self.skipped_in_a_row == HOPELESS:
            raise TrainingError(
                f"the gradients were not finite on {HOPELESS} steps in a row, until step {step}: nothing is trained. Check data and "
                f"weights for NaN, and lower the learning rate."
            )

    def state_dict(self) -> int:
        return self.skipped_in_a_row

    def load_state_dict(self, state: int) -> None:
        self.skipped_in_a_row = int(state)

    def _name_unreached(self) -> None:
        weights = {name: self._program.get_parameter(name) for name in self._program.masks()}
        lost = [name for name, weight in weights.items() if weight.requires_grad and weight.grad is None]
        self.named.update(lost)
        if lost:
            warnings.warn(
                f"the loss does not reach {', '.join(lost[:8])}: no gradient came on step 1. Rounds that read gradients leave the masks "
                f"of such weights as they are. Keep them dense (keep_dense of the method), or use them in the loss.",
                TrainingWarning,
                stacklevel=5,
            )


def are_finite(values: list[Tensor]) -> bool:
    """Check that no entry is NaN or infinite. Computes a sum or norm of each tensor first, and checks entries only if that overflows."""
    by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    with torch.no_grad():
        if all([value.is_cpu for value in values]):
            small = [value.reshape(-1) for value in values if value.numel() <= SMALL]
            rest = [value for value in values if value.numel() > SMALL]
            rest += [torch.cat(small)] if small else []
            finite = abs(sum([value.sum().item() for value in rest])) < math.inf
        else:  # one transfer from each device
            for value in values:
                by_kind.setdefault((value.device, value.dtype), []).append(value)
            norms = [torch.stack(torch._foreach_norm(some)) for some in by_kind.values()]  # pyright: ignore[reportPrivateImportUsage]
            finite = all([bool(norm.isfinite().all()) for norm in norms])
        return finite or all([bool(value.isfinite().all()) for value in values])
