"""A task: classes that have an order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from sparsify.errors import TrainingError
from sparsify.tasks import Shape, Task


@dataclass(frozen=True)
class Ordinal(Task):
    """Ordered classes by thresholds: logit k of K - 1 says whether the class is above k (Frank & Hall 2001)."""

    name: ClassVar = "ordinal"
    targets: ClassVar = "class numbers [N], from 0 to K - 1, for K - 1 logits [N, K - 1]"

    def loss(self, output: Any, target: Any, *, label_smoothing: float = 0.0) -> Tensor:
        if label_smoothing or (found := self.problem(target, output.shape)):
            raise TrainingError(
                f"task 'ordinal' takes {self.targets}: {found if not label_smoothing else 'unsmoothed'}."
            )
        return functional.binary_cross_entropy_with_logits(output, self._above(target, output).to(output.dtype))

    def figures(self, output: Any, target: Any) -> dict[str, float]:
        output, target = output.detach().cpu(), target.cpu()
        known = output.isfinite().all(1)
        off = ((output > 0).sum(1) - target).abs().double().masked_fill(~known, float("nan"))
        return {"mae": float(off.mean()), "accuracy": float((off == 0).double().mean())}

    def problem(self, target: Any, shape: Shape) -> str:
        if len(shape) != 2 or not isinstance(target, Tensor) or target.ndim != 1:
            return f"found an output {list(shape)} and targets {getattr(target, 'shape', type(target).__name__)}"
        if target.is_floating_point() or not len(target):
            return f"the targets are {target.dtype}"
        inside = isinstance(shape[1], str) or (int(target.min()) >= 0 and int(target.max()) <= shape[1])
        return (
            "" if inside else f"the targets run from {int(target.min())} to {int(target.max())} for {shape[1]} logits"
        )

    @classmethod
    def takes(cls, shape: Shape) -> bool:
        return len(shape) == 2

    def suits(self, target: Any, shape: Shape) -> bool:
        return False  # looks like classification; it has to be asked for

    def _above(self, target: Tensor, output: Tensor) -> Tensor:
        return target[:, None] > torch.arange(output.shape[1], device=target.device)
