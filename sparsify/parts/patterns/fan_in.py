"""Constant fan-in: every output of a layer reads the same number of inputs, or none at all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.errors import PatternError
from sparsify.parts.patterns.base import Balanced, Shape


@dataclass(frozen=True)
class FanIn(Balanced):
    """``fan-in``: each output chooses the same number of inputs (kernel positions count as inputs). An output without inputs is ablated.

    A unit of the budget is one input per output, that is O positions.
    """

    def __str__(self) -> str:
        return "fan-in"

    def check(self, shape: Shape, weight: str) -> None:
        if len(shape) < 2:
            raise PatternError(
                f"fan-in needs outputs and inputs; {weight!r} has shape {list(shape)}. Add it to keep-dense."
            )

    def unit_size(self, shape: Shape) -> int:
        return shape[0]

    def groups(self, values: Tensor) -> Tensor:
        """Reshape [O, I, *K] to [O, I * prod(K)]: one group per output."""
        return values.flatten(1)

    def ungroup(self, groups: Tensor, shape: Shape) -> Tensor:
        """Reshape [O, I * prod(K)] to ``shape``; the inverse of `groups`."""
        return groups.reshape(shape)

    def holds(self, mask: Tensor) -> bool:
        counts = self.groups(mask).sum(dim=1)
        return len(set(counts[counts > 0].tolist())) <= 1

    def select(self, scores: Tensor, budget: int) -> Tensor:
        if not 0 <= budget <= scores.numel() or budget % scores.shape[0]:
            raise ValueError(f"budget {budget} must be a multiple of {scores.shape[0]} between 0 and {scores.numel()}")
        return self.ungroup(largest_of_rows(self.groups(scores), budget // scores.shape[0]), tuple(scores.shape))


def largest_of_rows(scores: Tensor, count: int) -> Tensor:
    """Return a mask of the ``count`` highest scores of each row; ties go to lower columns."""
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :count], True)
