"""Grouped shared fan-in: the outputs of a layer form groups, and all outputs of a group read the same inputs.

A group is a small dense layer that reads a selection of inputs, so stock runtimes run it fast. Convolutions keep whole kernels, and a
multiple of 16 input channels, because runtimes compute convolutions in blocks of 16 channels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sparsify.errors import PatternError
from sparsify.parts.patterns.base import Balanced, Pattern, Shape
from sparsify.parts.patterns.grouping import group_outputs, order_by_inputs

LANES = 16
"""Channels of one block of ONNX Runtime's blocked convolutions on AVX-512; kept channels come in multiples of it."""


@dataclass(frozen=True)
class Grouped(Balanced):
    """``grouped:O`` or ``grouped:OxC``: groups of O outputs read the same inputs, and every group of a layer reads the same number.

    The outputs of a group are consecutive. With ``:learned`` they can be any: a selection then groups outputs whose scores agree on the
    inputs worth keeping (`group_outputs`). A mask shows its own groups, so they are not stored anywhere else (`bound`).

    Linear layers keep inputs in chunks of C; convolutions keep single input channels with their whole kernels. The sizes adapt to the
    weight (`fitted`). O becomes the largest divisor of the number of outputs that is at most O (for convolutions, also a multiple of 16),
    or all outputs if there are fewer than O. C becomes the largest divisor of the number of inputs that is at most C. A unit of the budget
    is one chunk (linear) or 16 channels (convolution) for every group; this is also the least that a layer can keep.

    Attributes:
        rows: O, outputs per group, at least 1.
        columns: C, inputs per chunk, at least 1.
        norm: how the scores of a chunk are combined: ``l1`` is their sum; ``l2`` ranks like the root of their sum of squares.
        grouping: ``contiguous`` or ``learned``.
        order: a permutation of the outputs in which groups are consecutive; empty for the natural order.
    """

    rows: int
    columns: int = 1
    norm: Literal["l1", "l2"] = "l1"
    grouping: Literal["contiguous", "learned"] = "contiguous"
    order: tuple[int, ...] = ()

    def __str__(self) -> str:
        chunks = f"x{self.columns}" if self.columns > 1 else ""
        norm, learned = ":l2" if self.norm == "l2" else "", ":learned" if self.grouping == "learned" else ""
        return f"grouped:{self.rows}{chunks}{norm}{learned}"

    def fitted(self, shape: Shape) -> Grouped:
        columns = 1 if len(shape) > 2 else max(c for c in range(1, self.columns + 1) if math.prod(shape[1:]) % c == 0)
        return dataclasses.replace(self, rows=self._divisor(shape) or self.rows, columns=columns)

    @property
    def is_learned(self) -> bool:
        return self.grouping == "learned" and not self.order

    def bound(self, mask: Tensor) -> Grouped:
        return _ordered({"": self}, {"": mask})[""] if self.is_learned else self

    def contiguous(self) -> Grouped:
        """Return the same pattern with groups of consecutive outputs."""
        return dataclasses.replace(self, grouping="contiguous", order=())

    def _divisor(self, shape: Shape) -> int:
        """Return the number of outputs per group, or 0 if the outputs cannot be divided into groups."""
        outputs = shape[0]
        if outputs <= self.rows:
            return outputs
        step = LANES if len(shape) > 2 and self.rows >= LANES else 1
        return max((o for o in range(step, self.rows + 1, step) if outputs % o == 0), default=0)

    def unsuited(self, shape: Shape) -> str | None:
        least = min(self.rows, LANES)
        if len(shape) < 2:
            return "it has one dimension"
        if self._divisor(shape) < least:
            sizes = f"{least} to {self.rows}" if least < self.rows else f"{self.rows}"
            return f"its {shape[0]} outputs do not split into groups of {sizes}"
        if len(shape) > 2 and shape[1] < 2 * LANES:
            return f"its {shape[1]} input channels leave no choice, because channels are kept {LANES} at a time"
        if len(shape) == 2 and shape[1] // self.fitted(shape).columns < 2:
            return f"its {shape[1]} inputs are a single chunk"
        return None

    def check(self, shape: Shape, weight: str) -> None:
        reason = self.unsuited(shape)
        if reason:
            raise PatternError(
                f"{self} does not fit {weight!r} of shape {list(shape)}: {reason}. Add it to keep-dense, or choose a smaller group."
            )

    def step(self, shape: Shape) -> int:
        """Return the smallest change in a group's number of inputs: one chunk, or 16 channels of a convolution."""
        return LANES if len(shape) > 2 else self.columns

    def unit_size(self, shape: Shape) -> int:
        return shape[0] * self.step(shape) * math.prod(shape[2:])

    def chunks(self, values: Tensor) -> Tensor:
        """Reshape [O, I, *K] to [O, I / columns, columns * prod(K)]."""
        outputs, inputs = values.shape[:2]
        return values.reshape(outputs, inputs // self.columns, -1)

    def _split(self, values: Tensor) -> Tensor:
        """Reshape [O, I, *K] to [groups, rows, I / columns, columns * prod(K)]."""
        chunks = self.chunks(values)
        if self.order:
            chunks = chunks[torch.tensor(self.order, device=values.device)]
        return chunks.reshape(-1, self.rows, *chunks.shape[1:])

    def groups(self, values: Tensor) -> Tensor:
        return self._split(values)[:, 0, :, 0]

    def joined(self, chunks: Tensor, dim: int | tuple[int, ...]) -> Tensor:
        """Sum scores over ``dim``; with ``l2``, sum their squares with the sign of the scores."""
        return (chunks * chunks.abs() if self.norm == "l2" else chunks).sum(dim=dim)

    def group_scores(self, scores: Tensor) -> Tensor:
        return self.joined(self._split(scores), (1, 3))

    def ungroup(self, groups: Tensor, shape: Shape) -> Tensor:
        count, chunks = groups.shape
        size = math.prod(shape) // (count * self.rows * chunks)
        values = groups.reshape(count, 1, chunks, 1).expand(count, self.rows, chunks, size).reshape(shape)
        if not self.order:
            return values.contiguous()  # a view would share memory within a single group
        return torch.empty_like(values).index_copy_(0, torch.tensor(self.order, device=values.device), values)

    def pool(self, values: Tensor) -> Tensor:
        return self.group_scores(values).reshape(-1)

    def expand(self, units: Tensor, shape: Shape) -> Tensor:
        return self.ungroup(units.reshape(shape[0] // self.rows, shape[1] // self.columns), shape)

    def reduce(self, mask: Tensor) -> Tensor:
        return self.groups(mask).reshape(-1)

    def holds(self, mask: Tensor) -> bool:
        if self.is_learned:
            bound = self.bound(mask)
            return bool(bound.order) and bound.holds(mask)
        shape, chosen = tuple(mask.shape), self.groups(mask)
        counts = chosen.sum(dim=1)
        kept = int(counts[0]) * self.columns
        whole = kept % self.step(shape) == 0 or kept == shape[1]
        return whole and bool((counts == counts[0]).all()) and torch.equal(self.ungroup(chosen, shape), mask)

    def select(self, scores: Tensor, budget: int) -> Tensor:
        shape = tuple(scores.shape)
        unit = self.unit_size(shape)
        if not 0 <= budget <= scores.numel() or (budget % unit and budget != scores.numel()):
            raise ValueError(f"budget {budget} must be a multiple of {unit} between 0 and {scores.numel()}")
        if self.is_learned:
            return select_together({"": self}, {"": scores}, {"": budget})[""]
        units = self.group_scores(scores.float())
        if units.isnan().any():
            raise ValueError("the scores hold NaN")
        kept = budget * units.shape[1] // scores.numel()
        order = units.sort(dim=1, descending=True, stable=True).indices
        return self.ungroup(torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :kept], True), shape)


def bound_together(patterns: Mapping[str, Pattern], masks: Mapping[str, Tensor]) -> dict[str, Pattern]:
    """Apply `Pattern.bound` to weights that share one order of outputs: learned groups are read off all their masks together."""
    learned = {n: pattern for n, pattern in patterns.items() if isinstance(pattern, Grouped) and pattern.is_learned}
    return {**patterns, **_ordered(learned, masks)}


def select_together(
    patterns: Mapping[str, Pattern], scores: Mapping[str, Tensor], budgets: Mapping[str, int]
) -> dict[str, Tensor]:
    """Apply `Pattern.select` to weights that share one order of outputs: all get the same learned groups; scores below 0 count as 0.

    Args:
        patterns: by weight name; learned ones must have the same group size and number of outputs.
        scores: by weight name, float [O, I, *K].
        budgets: by weight name, the number of active positions, a whole number of units.

    Raises:
        ValueError: If a budget does not fit, or a score is not finite.
    """
    learned = {n: pattern for n, pattern in patterns.items() if isinstance(pattern, Grouped) and pattern.is_learned}
    scores = {name: value.float().clamp_min(0) if name in learned else value for name, value in scores.items()}
    bound = dict(patterns)
    if learned:
        profiles = {n: p.joined(p.chunks(scores[n]), 2) for n, p in learned.items()}
        kept = [max(budgets[n] * table.shape[1] // scores[n].numel(), 1) for n, table in profiles.items()]
        rows = next(iter(learned.values())).rows
        order = tuple(group_outputs([*profiles.values()], rows=rows, kept=kept).tolist())
        bound |= {n: dataclasses.replace(p, order=order) for n, p in learned.items()}
    return {name: pattern.select(scores[name], budgets[name]) for name, pattern in bound.items()}


def _ordered(patterns: Mapping[str, Grouped], masks: Mapping[str, Tensor]) -> dict[str, Grouped]:
    """Return the learned patterns with an order of outputs in which all masks show their groups; without an order if none exists."""
    if not patterns:
        return {}
    used = torch.cat([p.chunks(masks[name])[:, :, 0] for name, p in patterns.items()], dim=1)
    order = order_by_inputs(used, next(iter(patterns.values())).rows)
    chosen = () if order is None else tuple(order.tolist())
    return {name: dataclasses.replace(p, order=chosen) for name, p in patterns.items()}
