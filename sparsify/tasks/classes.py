"""Tasks that choose one of K classes: per sample, per position of an image, or per step of a sequence."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from sparsify.arguments import checked_fields
from sparsify.errors import TaskError, TrainingError
from sparsify.figures import bootstrap
from sparsify.figures.bootstrap import Figure
from sparsify.parts.distillation import distillation_loss
from sparsify.tasks.base import Shape, Task, decided, fits, is_whole, mismatch, shown, tensors


@dataclass(frozen=True)
class Classification(Task):
    """One of K classes per sample: logits [N, K], targets int [N]. The loss also takes probabilities [N, K] as targets.

    Examples:
        >>> import torch
        >>> from sparsify.tasks import Classification
        >>> logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
        >>> Classification().figures(logits, labels)["accuracy"]
        0.5
    """

    name: ClassVar = "classification"
    targets: ClassVar = "class numbers, int [N], for logits [N, K]"
    heads: ClassVar = ("temperature", "vector", "matrix", "dirichlet", "ensemble-temperature", "isotonic", "histogram")
    taught: ClassVar = True
    link: ClassVar = "softmax"

    def loss(self, output: Any, target: Any, *, label_smoothing: float = 0.0) -> Tensor:
        if not tensors(output, target):
            raise TrainingError(mismatch(self, output, target))
        soft = output.ndim == 2 and target.is_floating_point() and target.shape == output.shape
        if output.ndim != 2 or not (soft or (target.shape == output.shape[:1] and is_whole(target))):
            raise TrainingError(mismatch(self, output, target))
        return functional.cross_entropy(output, target, label_smoothing=label_smoothing)

    def imitation(self, output: Any, teacher: Any, target: Any = None, *, temperature: float = 1.0) -> Tensor:
        del target
        return distillation_loss(output, teacher, temperature)

    def figures(self, output: Any, target: Any) -> dict[str, float]:
        return decided(self, output, target)

    @classmethod
    def takes(cls, shape: Shape) -> bool:
        return len(shape) == 2 and shape[1] != 1

    def problem(self, target: Any, shape: Shape) -> str:
        if not isinstance(target, Tensor):
            return f"the targets are {shown(target)}"
        if not self.takes(shape):
            return f"the output has shape {list(shape)}"
        if target.ndim == 2 and bool((target.sum(1) == 1).all()) and bool(((target == 0) | (target == 1)).all()):
            return f"the targets are one-hot, {shown(target)}; give class numbers instead, with target.argmax(1)"
        if target.ndim != 1 or not is_whole(target):
            return f"the targets are {shown(target)}"
        return classes_problem(target, shape[1])

    def scores(self, output: Any) -> Tensor:
        return output

    def answers(self, target: Any) -> Tensor:
        return target

    def right(self, output: Any, target: Any) -> tuple[int, int]:
        return int((output.argmax(1) == target).sum()), len(target)


@dataclass(frozen=True)
class _Positions(Task):
    """One of K classes per position. Positions whose target is ``ignore`` are not judged.

    Attributes:
        ignore: target of positions that are not judged.
    """

    heads: ClassVar = ("temperature",)
    taught: ClassVar = True
    link: ClassVar = "softmax"

    ignore: int = -100

    @classmethod
    @abstractmethod
    def places(cls, shape: Shape) -> Shape | None:
        """Return the shape of the targets for an output; None if it cannot be the output of this task."""

    @classmethod
    def takes(cls, shape: Shape) -> bool:
        return cls.places(shape) is not None

    def loss(self, output: Any, target: Any, *, label_smoothing: float = 0.0) -> Tensor:
        places = self.places(tuple(output.shape)) if tensors(output, target) else None
        if places is None or tuple(target.shape) != places or not is_whole(target):
            raise TrainingError(mismatch(self, output, target))
        rows = output.movedim(self.class_dim, 1)
        total = functional.cross_entropy(
            rows, target.long(), ignore_index=self.ignore, reduction="sum", label_smoothing=label_smoothing
        )
        return total / (target != self.ignore).sum().clamp_min(1)  # 0 where every position is ignored

    def imitation(self, output: Any, teacher: Any, target: Any = None, *, temperature: float = 1.0) -> Tensor:
        rows, wanted = self.scores(output), self.scores(teacher)
        if target is not None:
            known = self.answers(target) >= 0
            rows, wanted = rows[known], wanted[known]
        return distillation_loss(rows, wanted, temperature) if len(rows) else output.sum() * 0.0

    def problem(self, target: Any, shape: Shape) -> str:
        places = self.places(tuple(shape))
        if places is None:
            return f"the output has shape {list(shape)}"
        if not isinstance(target, Tensor) or not is_whole(target) or not fits(target.shape, places):
            return f"the targets are {shown(target)} for an output {list(shape)}"
        return classes_problem(target, shape[self.class_dim], self.ignore)

    def scores(self, output: Any) -> Tensor:
        return output.movedim(self.class_dim, -1).flatten(0, -2)

    def answers(self, target: Any) -> Tensor:
        return target.where(target != self.ignore, -1).flatten()

    def _by_sample(self, output: Any, target: Any) -> tuple[Tensor, Tensor]:
        """Return the chosen and the right classes, int64 [N, positions], both -1 at positions that are not judged."""
        right = self.answers(target.cpu()).reshape(len(target), -1)
        chosen = self.scores(output.detach().cpu()).argmax(1).reshape(right.shape)
        return chosen.where(right >= 0, -1), right


@checked_fields(TaskError)
@dataclass(frozen=True)
class Dense(_Positions):
    """One of K classes per position of an image or a signal: logits [N, K, ...], targets int [N, ...]."""

    name: ClassVar = "dense"
    targets: ClassVar = "class numbers, int [N, ...], for logits [N, K, ...]"
    class_dim: ClassVar = 1

    @classmethod
    def places(cls, shape: Shape) -> Shape | None:
        return (shape[0], *shape[2:]) if len(shape) > 2 and shape[1] != 1 else None

    def resampled(self, output: Any, target: Any) -> Figure | None:
        chosen, right = self._by_sample(output, target)
        size = int(torch.stack([chosen, right]).max()) + 1
        if not size:
            return None
        both, first, second = (
            torch.stack([mine.eq(k).sum(1) for k in range(size)], dim=1).double()
            for mine in (chosen.where(chosen == right, -1), chosen, right)
        )
        return bootstrap.mean_iou(both, first + second - both)

    def figures(self, output: Any, target: Any) -> dict[str, float]:
        return {"mean_iou": mean_iou(self.decisions(output), self.answers(target)), **decided(self, output, target)}


@checked_fields(TaskError)
@dataclass(frozen=True)
class Sequence(_Positions):
    """One of K classes, or tokens, per step of a sequence: logits [N, T, K], targets int [N, T]."""

    name: ClassVar = "sequence"
    targets: ClassVar = "class or token numbers, int [N, T], for logits [N, T, K]"
    class_dim: ClassVar = -1

    def resampled(self, output: Any, target: Any) -> Figure:
        chosen, right = self._by_sample(output, target)
        hits = (chosen == right) & (right >= 0)
        return bootstrap.share(hits.sum(1).double(), (right >= 0).sum(1).double())

    @classmethod
    def places(cls, shape: Shape) -> Shape | None:
        return tuple(shape[:2]) if len(shape) == 3 and shape[2] != 1 else None

    def figures(self, output: Any, target: Any) -> dict[str, float]:
        found = decided(self, output, target)
        perplexity = float(torch.tensor(found["nll"]).exp())
        return {"accuracy": found["accuracy"], "perplexity": perplexity, "nll": found["nll"], "ece": found["ece"]}


def mean_iou(decisions: Tensor | None, answers: Tensor) -> float:
    """Compute intersection over union, averaged over the classes that are chosen or right anywhere; NaN without judged positions.

    Args:
        decisions: int64 [M].
        answers: int64 [M], -1 where a position is not judged.
    """
    assert decisions is not None
    chosen, right = decisions[answers >= 0], answers[answers >= 0]
    if not len(right):
        return float("nan")
    size = int(torch.cat([chosen, right]).max()) + 1
    both = torch.bincount(right[chosen == right], minlength=size)
    either = torch.bincount(chosen, minlength=size) + torch.bincount(right, minlength=size) - both
    seen = either > 0
    return float((both[seen].double() / either[seen]).mean())


def classes_problem(target: Tensor, classes: int | str, ignore: int | None = None) -> str:
    """Return why class numbers are out of range; empty if they are not."""
    judged = target if ignore is None else target[target != ignore]
    if not judged.numel():
        return "no target is judged" if target.numel() else ""
    low, high = int(judged.min()), int(judged.max())
    beside = "" if ignore is None else f" (without those ignored, {ignore})"
    if low < 0:
        return f"the lowest target{beside} is {low}; classes are numbered from 0"
    if isinstance(classes, int) and high >= classes:
        from_one = f": if they are numbered from {low}, subtract {low} from all targets" if low else ""
        return f"the targets{beside} go from {low} to {high} for {classes} classes{from_one}"
    return ""
