"""Patterns of single positions, blocks, and N of every M inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.errors import PatternError
from sparsify.parts.patterns.base import Balanced, Pattern, Shape


@dataclass(frozen=True)
class Unstructured(Pattern):
    """``unstructured``: every position is active or inactive by itself."""

    def __str__(self) -> str:
        return "unstructured"

    def check(self, shape: Shape, weight: str) -> None:
        """Every shape fits."""

    def holds(self, mask: Tensor) -> bool:
        return mask.dtype is torch.bool


@dataclass(frozen=True)
class Block(Pattern):
    """``block:RxC``: a block of R outputs and C inputs, at one kernel position, is active or inactive as a whole."""

    rows: int
    columns: int

    def __str__(self) -> str:
        return f"block:{self.rows}x{self.columns}"

    def check(self, shape: Shape, weight: str) -> None:
        if len(shape) < 2 or shape[0] % self.rows or shape[1] % self.columns:
            raise PatternError(
                f"{self} needs outputs divisible by {self.rows} and inputs divisible by {self.columns}; {weight!r} has shape "
                f"{list(shape)}. Add it to keep-dense, choose a smaller block, or use pattern 'unstructured'."
            )

    def unit_size(self, shape: Shape) -> int:
        del shape
        return self.rows * self.columns

    def _blocks(self, values: Tensor) -> Tensor:
        """Reshape [O, I, *K] to [O/R, R, I/C, C, prod(K)]."""
        o, i = values.shape[:2]
        return values.reshape(o // self.rows, self.rows, i // self.columns, self.columns, -1)

    def pool(self, values: Tensor) -> Tensor:
        return self._blocks(values).sum(dim=(1, 3)).reshape(-1)

    def expand(self, units: Tensor, shape: Shape) -> Tensor:
        o, i, k = shape[0] // self.rows, shape[1] // self.columns, math.prod(shape[2:])
        blocks = units.reshape(o, 1, i, 1, k).expand(o, self.rows, i, self.columns, k)
        return blocks.reshape(shape).contiguous()  # a view would share memory within a block that spans a dimension

    def reduce(self, mask: Tensor) -> Tensor:
        return self._blocks(mask)[:, 0, :, 0].reshape(-1)

    def holds(self, mask: Tensor) -> bool:
        return torch.equal(self.expand(self.reduce(mask), tuple(mask.shape)), mask)


@dataclass(frozen=True)
class NM(Balanced):
    """``nm:N:M``: of every M consecutive inputs, N are active (Mishra et al. 2021, arXiv:2104.08378, for 2:4)."""

    n: int
    m: int

    def __str__(self) -> str:
        return f"nm:{self.n}:{self.m}"

    def check(self, shape: Shape, weight: str) -> None:
        if len(shape) < 2 or shape[1] % self.m:
            raise PatternError(
                f"{self.n}:{self.m} needs an input dimension divisible by {self.m}; {weight!r} has shape {list(shape)}. "
                f"Add it to keep-dense or choose pattern 'unstructured'."
            )

    def fixed_density(self, shape: Shape) -> float | None:
        del shape
        return self.n / self.m

    def groups(self, values: Tensor) -> Tensor:
        """Reshape [O, I, *K] to [groups, M]; a group is M consecutive inputs at one output and kernel position."""
        return values.movedim(1, -1).reshape(-1, self.m)

    def ungroup(self, groups: Tensor, shape: Shape) -> Tensor:
        """Reshape [groups, M] to ``shape``; the inverse of `groups`."""
        return groups.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1).contiguous()

    def holds(self, mask: Tensor) -> bool:
        return bool((self.groups(mask).sum(dim=1) == self.n).all())

    def select(self, scores: Tensor, budget: int) -> Tensor:
        expected = scores.numel() * self.n // self.m
        if budget != expected:
            raise ValueError(f"budget {budget} must be {expected}: {self} fixes the density")
        order = self.groups(scores).sort(dim=1, descending=True, stable=True).indices
        chosen = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, : self.n], True)
        return self.ungroup(chosen, tuple(scores.shape))
