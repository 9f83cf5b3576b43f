"""The task of predicting numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from sparsify.arguments import checked_fields
from sparsify.errors import TaskError, TrainingError
from sparsify.figures import bootstrap
from sparsify.figures.bootstrap import Figure
from sparsify.figures.regression import errors
from sparsify.tasks.base import Shape, Task, fits, mismatch, own_loss, shown, tensors, unsmoothed

LOSSES = {"mse": functional.mse_loss, "mae": functional.l1_loss, "huber": functional.huber_loss}
SCALES = ("standard", "none")


@checked_fields(TaskError)
@dataclass(frozen=True)
class Regression(Task):
    """Numbers per sample: predictions and targets have the same shape, [N, ...]; [N] and [N, 1] also match.

    Attributes:
        criterion: the loss: ``mse``, ``mae`` or ``huber``; or ``loss(output, target)``, a function of your own that returns a scalar. Its
            output is everything that the model returns, in its own structure, so it may read more than the prediction. It gets predictions
            and targets in their own units, and a run then does not scale targets.
        delta: error at which Huber's loss changes from squares to absolute values, above 0; errors are first divided by ``deviations``.
        scale: ``standard``: a run lets the model learn targets with mean 0 and deviation 1, and predict them in their own units
            (`sparsify.passes.ScalePrediction`). ``none``: a run does not scale targets. It has no effect in a loop of your own.
        deviations: numbers above 0 that errors are divided by before the loss: one per column of outputs [N, K], or a single one. A run
            with ``standard`` sets them. Empty: errors are not divided. Figures are always in the targets' own units.

    Raises:
        TaskError: If an option has a wrong value or type.

    Examples:
        >>> import torch
        >>> from sparsify.tasks import Regression
        >>> prediction, target = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.0], [2.0], [3.0]])
        >>> Regression().figures(prediction, target)["r2"]
        0.5
    """

    name: ClassVar = "regression"
    output: ClassVar = "prediction"
    targets: ClassVar = "numbers of the shape of the output, [N, ...]"
    heads: ClassVar = ("interval",)
    constant: ClassVar = 0.0
    taught: ClassVar = True
    functions: ClassVar = frozenset({"criterion"})

    criterion: str | Callable[[Any, Any], Tensor] = "mse"
    delta: float = 1.0
    scale: str = "standard"
    deviations: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "deviations", tuple(self.deviations))
        if self.criterion not in LOSSES and not callable(self.criterion):
            raise TaskError(
                f"the loss of task 'regression' should be one of {', '.join(LOSSES)}, or a function of output and target (--loss "
                f"file.py:function), found {self.criterion!r}."
            )
        if not 0 < self.delta < math.inf:
            raise TaskError(f"delta of task 'regression' should be above 0 and finite, found {self.delta}.")
        if self.scale not in SCALES:
            raise TaskError(f"scale of task 'regression' should be one of {', '.join(SCALES)}, found {self.scale!r}.")
        if not all(0 < value < math.inf for value in self.deviations):
            raise TaskError(f"deviations of task 'regression' should be above 0, found {self.deviations}.")

    @property
    def trained_on(self) -> str | None:
        return None if callable(self.criterion) else self.output

    def loss(self, output: Any, target: Any, *, label_smoothing: float = 0.0) -> Tensor:
        unsmoothed(self, label_smoothing)
        if callable(self.criterion):
            return own_loss(self, self.criterion, output, target)
        wanted = _like(target, output) if tensors(output, target) else None
        if wanted is None:
            raise TrainingError(mismatch(self, output, target))
        if self.deviations:
            unit = output.new_tensor(self.deviations)
            output, wanted = output / unit, wanted.to(output.dtype) / unit
        options = {"delta": self.delta} if self.criterion == "huber" else {}
        return LOSSES[self.criterion](output, wanted.to(output.dtype), **options)

    def imitation(self, output: Any, teacher: Any, target: Any = None, *, temperature: float = 1.0) -> Tensor:
        """Compute the mean squared difference to the teacher's predictions, divided by `deviations` if given; ignores the temperature."""
        del target, temperature
        unit = output.new_tensor(self.deviations) if self.deviations else 1.0
        return functional.mse_loss(output / unit, teacher.detach().to(output.dtype) / unit)

    def figures(self, output: Any, target: Any) -> dict[str, float]:
        """Compute R2, RMSE and MAE over all values (`sparsify.figures.regression.errors`).

        Raises:
            TrainingError: If the shapes do not go together.
        """
        found = output.detach().cpu().double()
        wanted = _like(target.cpu().double(), found)
        if wanted is None:
            raise TrainingError(mismatch(self, output, target))
        return errors(found, wanted)

    def resampled(self, output: Any, target: Any) -> Figure | None:
        found = output.detach().cpu().double()
        wanted = _like(target.cpu().double(), found)
        return None if wanted is None or not bool(found.isfinite().all()) else bootstrap.r2(found, wanted)

    def moments(self, target: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
        """Compute mean and deviation of targets: per column for an output [N, K], else over all values.

        Args:
            target: targets of the training samples, [N, ...].
            shape: shape of the output, [N, ...].

        Returns:
            Mean and deviation, float64 [K] or [1]; the deviation is exactly 0 if all values are equal.
        """
        columns = len(shape) == 2 and isinstance(shape[1], int)
        rows = target.cpu().double().reshape(-1, int(shape[1]) if columns else 1)
        same = rows.amin(0) == rows.amax(0)
        return rows.mean(0), rows.std(0, correction=0).where(~same, 0.0)

    def problem(self, target: Any, shape: Shape) -> str:
        if not isinstance(target, Tensor) or target.is_complex():
            return f"the targets are {shown(target)}"
        sizes = ("N", *shape[1:])
        if not shape or not (fits(target.shape, sizes) or _squeezed(target.shape) == _squeezed(sizes) == 1):
            return f"the targets are {shown(target)} for an output {list(shape)}"
        if not bool(target.isfinite().all()):
            return f"{int((~target.isfinite()).sum())} of {target.numel()} targets are NaN or infinite"
        return ""

    def suits(self, target: Any, shape: Shape) -> bool:
        return isinstance(target, Tensor) and target.is_floating_point() and super().suits(target, shape)


def _squeezed(shape: Shape) -> int:
    """Count the dimensions, without a last one of size 1."""
    return len(shape) - (len(shape) == 2 and shape[1] == 1)


def _like(target: Tensor, output: Tensor) -> Tensor | None:
    """Reshape the target to the output's shape; None if they do not match. Nothing is broadcast: [N] with [N, 1] would give [N, N]."""
    if target.shape == output.shape:
        return target
    alike = len(target) == len(output) and _squeezed(target.shape) == _squeezed(output.shape) == 1
    return target.reshape(output.shape) if alike and not isinstance(output, torch.Size) else None
