"""Tasks with yes/no answers: one question per sample, or several independent ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from sparsify.errors import TrainingError
from sparsify.figures import bootstrap, metrics
from sparsify.figures.bootstrap import Figure
from sparsify.parts.distillation import yes_no_distillation_loss
from sparsify.tasks.base import Shape, Task, decided, fits, is_zero_one, mismatch, shown, tensors


@dataclass(frozen=True)
class _YesNo(Task):
    """Tasks whose logits z each mean "yes" with probability sigmoid(z); the decision is "yes" if z > 0."""

    link: ClassVar = "sigmoid"
    taught: ClassVar = True

    def imitation(self, output: Any, teacher: Any, target: Any = None, *, temperature: float = 1.0) -> Tensor:
        del target
        return yes_no_distillation_loss(output, teacher, temperature)

    def loss(self, output: Any, target: Any, *, label_smoothing: float = 0.0) -> Tensor:
        if not tensors(output, target) or not self._together(output, target):
            raise TrainingError(mismatch(self, output, target))
        wanted = target.reshape(output.shape).to(output.dtype)
        if label_smoothing:
            wanted = wanted * (1 - label_smoothing) + label_smoothing / 2
        return functional.binary_cross_entropy_with_logits(output, wanted)

    def scores(self, output: Any) -> Tensor:
        flat = output.flatten()
        return torch.stack([torch.zeros_like(flat), flat], dim=1)

    def answers(self, target: Any) -> Tensor:
        return (target > 0.5).long().flatten() if target.dtype is not torch.bool else target.long().flatten()

    def _together(self, output: Tensor, target: Tensor) -> bool:
        return output.shape == target.shape


@dataclass(frozen=True)
class Binary(_YesNo):
    """Yes or no per sample: one logit, [N] or [N, 1], targets 0 or 1.

    Examples:
        >>> import torch
        >>> from sparsify.tasks import Binary
        >>> Binary().figures(torch.tensor([[2.0], [-1.0]]), torch.tensor([1, 0]))["auroc"]
        1.0
    """

    name: ClassVar = "binary"
    targets: ClassVar = "0 or 1, [N] or [N, 1], for one logit per sample, [N] or [N, 1]"
    heads: ClassVar = ("temperature",)
    constant: ClassVar = 0.5

    def figures(self, output: Any, target: Any) -> dict[str, float]:
        scores, answers = output.detach().cpu().double().flatten(), self.answers(target).cpu()
        found = {"auroc": float("nan"), **decided(self, output, target), "average_precision": float("nan")}
        if bool(scores.isfinite().all()) and 0 < int(answers.sum()) < len(answers):
            yes, no = scores[answers == 1], scores[answers == 0]
            found |= {"auroc": metrics.auroc(yes, no), "average_precision": metrics.aupr(yes, no)}
        return found

    def resampled(self, output: Any, target: Any) -> Figure | None:
        scores = output.detach().cpu().double().flatten()
        return bootstrap.auroc(scores, self.answers(target).cpu() == 1) if bool(scores.isfinite().all()) else None

    @classmethod
    def takes(cls, shape: Shape) -> bool:
        return _one_each(shape)

    def problem(self, target: Any, shape: Shape) -> str:
        if not self.takes(shape):
            return f"the output has shape {list(shape)}"
        if not isinstance(target, Tensor) or not _one_each(target.shape):
            return f"the targets are {shown(target)}"
        return _zero_one_problem(target)

    def _together(self, output: Tensor, target: Tensor) -> bool:
        return _one_each(output.shape) and _one_each(target.shape) and len(output) == len(target)


@dataclass(frozen=True)
class Multilabel(_YesNo):
    """K questions per sample that do not exclude each other: logits [N, K], targets 0 or 1 [N, K].

    Examples:
        >>> import torch
        >>> from sparsify.tasks import Multilabel
        >>> float(Multilabel().loss(torch.zeros(2, 3), torch.ones(2, 3)).exp())
        2.0
    """

    name: ClassVar = "multilabel"
    targets: ClassVar = "0 or 1, [N, K], for logits [N, K]"
    heads: ClassVar = ("label-temperature",)

    def figures(self, output: Any, target: Any) -> dict[str, float]:
        scores, wanted = output.detach().cpu().double(), self.answers(target).cpu().reshape(target.shape)
        precision = float("nan")
        if bool(scores.isfinite().all()):
            asked = [k for k in range(scores.shape[1]) if bool(wanted[:, k].any())]  # others have no precision
            each = [metrics.aupr(scores[wanted[:, k] == 1, k], scores[wanted[:, k] == 0, k]) for k in asked]
            precision = sum(each) / len(each) if each else precision
        return {"mean_average_precision": precision, **decided(self, output, target)}

    def resampled(self, output: Any, target: Any) -> Figure | None:
        scores, wanted = output.detach().cpu().double(), self.answers(target).cpu().reshape(target.shape) == 1
        return bootstrap.mean_average_precision(scores, wanted) if bool(scores.isfinite().all()) else None

    def about(self, output: Any) -> Tensor:
        return torch.arange(output.shape[1], device=output.device).repeat(len(output))

    @classmethod
    def takes(cls, shape: Shape) -> bool:
        return len(shape) == 2 and shape[1] != 1

    def problem(self, target: Any, shape: Shape) -> str:
        if not self.takes(shape):
            return f"the output has shape {list(shape)}"
        if not isinstance(target, Tensor) or not fits(target.shape, ("N", *shape[1:])):
            return f"the targets are {shown(target)} for an output {list(shape)}"
        return _zero_one_problem(target)

    def suits(self, target: Any, shape: Shape) -> bool:
        return super().suits(target, shape) and not bool((target.sum(1) == 1).all())  # one-hot: classes, most likely


def _one_each(shape: Shape) -> bool:
    return len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)


def _zero_one_problem(target: Tensor) -> str:
    if is_zero_one(target):
        return ""
    wrong = target[~((target == 0) | (target == 1))]
    return f"{wrong.numel()} of {target.numel()} targets are neither 0 nor 1, such as {wrong.flatten()[0].item()}"
