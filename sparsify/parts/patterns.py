"""Patterns: which positions of a weight may be active together.

A weight is [O, I, *K]. A *unit* is what is dropped or grown as one: a position, or a block. Budgets count positions.
"""

from __future__ import annotations

import abc
import math
import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparsify.errors import PatternError

Shape = tuple[int, ...]
SAMPLE = 16384
"""Positions looked at to narrow a selection before it is made exactly."""


@dataclass(frozen=True)
class Pattern(abc.ABC):
    """Which positions may be active together. Subclasses are final; ``str`` is the inverse of `parse_pattern`."""

    @abc.abstractmethod
    def __str__(self) -> str: ...

    @abc.abstractmethod
    def check(self, shape: Shape, weight: str) -> None:
        """Raise unless the pattern fits a weight of this shape.

        Raises:
            PatternError: Naming the weight, the shape and what to do.
        """

    def fitted(self, shape: Shape) -> Pattern:
        """The pattern as it is applied to a weight of this shape; itself, unless its sizes adapt."""
        del shape
        return self

    @property
    def is_learned(self) -> bool:
        """Whether a selection chooses, beside positions, which outputs belong together."""
        return False

    def bound(self, mask: Tensor) -> Pattern:
        """The pattern with what it reads off a mask that obeys it; itself, unless outputs belong together by their mask."""
        del mask
        return self

    def unsuited(self, shape: Shape) -> str | None:
        """Why a weight of this shape is left dense, for patterns that pass over weights; None: apply it, or let `check` raise."""
        del shape
        return None

    def unit_size(self, shape: Shape) -> int:
        """Positions per unit of a budget."""
        del shape
        return 1

    def pool(self, values: Tensor) -> Tensor:
        """[O, I, *K] values -> 1-d, one a unit (the sum over it), in the order of flat positions."""
        return values.reshape(-1)

    def expand(self, units: Tensor, shape: Shape) -> Tensor:
        """1-d values, one a unit -> [O, I, *K]; the inverse of `reduce`."""
        return units.reshape(shape)

    def reduce(self, mask: Tensor) -> Tensor:
        """Mask of positions [O, I, *K] -> 1-d mask of units."""
        return mask.reshape(-1)

    def fixed_density(self, shape: Shape) -> float | None:
        """The only density the pattern allows, or None where any budget of whole units will do."""
        del shape
        return None

    @abc.abstractmethod
    def holds(self, mask: Tensor) -> bool:
        """Whether a mask [O, I, *K] obeys the pattern."""

    def select(self, scores: Tensor, budget: int) -> Tensor:
        """The mask of highest total score with exactly ``budget`` active positions; ties go to lower flat indices.

        Args:
            scores: float, [O, I, *K].
            budget: active positions, a whole number of units, 0 <= budget <= scores.numel().

        Raises:
            ValueError: If the budget is out of range or not a whole number of units.
        """
        shape = tuple(scores.shape)
        size = self.unit_size(shape)
        if not 0 <= budget <= scores.numel() or budget % size:
            raise ValueError(f"budget {budget} must be a multiple of {size} between 0 and {scores.numel()}")
        return self.expand(top(self.pool(scores), budget // size), shape)


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Any position, alone."""

    def __str__(self) -> str:
        return "unstructured"

    def check(self, shape: Shape, weight: str) -> None:
        """Every shape fits."""

    def holds(self, mask: Tensor) -> bool:
        return mask.dtype is torch.bool


@dataclass(frozen=True)
class Block(Pattern):
    """``block:RxC``: R outputs by C inputs, at one kernel position, are active together."""

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
        """[O, I, *K] -> [O/R, R, I/C, C, prod(K)]."""
        o, i = values.shape[:2]
        return values.reshape(o // self.rows, self.rows, i // self.columns, self.columns, -1)

    def pool(self, values: Tensor) -> Tensor:
        return self._blocks(values).sum(dim=(1, 3)).reshape(-1)

    def expand(self, units: Tensor, shape: Shape) -> Tensor:
        o, i, k = shape[0] // self.rows, shape[1] // self.columns, math.prod(shape[2:])
        return units.reshape(o, 1, i, 1, k).expand(o, self.rows, i, self.columns, k).reshape(shape)

    def reduce(self, mask: Tensor) -> Tensor:
        return self._blocks(mask)[:, 0, :, 0].reshape(-1)

    def holds(self, mask: Tensor) -> bool:
        return torch.equal(self.expand(self.reduce(mask), tuple(mask.shape)), mask)


class Balanced(Pattern):
    """Equal numbers of active units in every group of a weight; rounds exchange units inside a group."""

    @abc.abstractmethod
    def groups(self, values: Tensor) -> Tensor:
        """Mask [O, I, *K] -> mask of units [groups, M]."""

    def group_scores(self, scores: Tensor) -> Tensor:
        """Scores [O, I, *K] -> one a unit, [groups, M]."""
        return self.groups(scores)

    @abc.abstractmethod
    def ungroup(self, groups: Tensor, shape: Shape) -> Tensor:
        """The inverse of `groups`."""


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
        """[O, I, *K] -> [groups, M]; a group is M consecutive inputs at one output and kernel position."""
        return values.movedim(1, -1).reshape(-1, self.m)

    def ungroup(self, groups: Tensor, shape: Shape) -> Tensor:
        """The inverse of `groups`."""
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


SPELLINGS = {
    "unstructured": "any position, alone",
    "nm:N:M": "N of every M consecutive inputs, e.g. nm:2:4; the density is N/M",
    "block:RxC": "R outputs by C inputs together, e.g. block:4x1",
    "fan-in": "every output keeps as many inputs of its own choice, or none at all (SRigL's constant fan-in)",
    "grouped:O": "groups of O outputs read the same inputs, as many in every group, e.g. grouped:64; fast in stock ONNX Runtime",
    "grouped:OxC": "the same, with the inputs of linear layers kept in chunks of C, e.g. grouped:64x4; append :l2 to rank by L2 norm",
    "grouped:O:learned": "the same, with outputs that want the same inputs put into one group; as fast, where their order is free",
}


def parse_pattern(text: str) -> Pattern:
    """Read ``unstructured``, ``nm:2:4``, ``block:4x1`` or ``grouped:64``.

    Raises:
        PatternError: If the spelling is unknown or its numbers make no sense.
    """
    if text == "unstructured":
        return Unstructured()
    if text == "fan-in":
        from sparsify.parts.fan_in import FanIn

        return FanIn()
    if match := re.fullmatch(r"nm:(\d+):(\d+)", text):
        n, m = int(match[1]), int(match[2])
        if 0 < n < m:
            return NM(n, m)
        raise PatternError(f"{text!r}: N:M needs 0 < N < M, e.g. nm:2:4.")
    if match := re.fullmatch(r"block:(\d+)x(\d+)", text):
        rows, columns = int(match[1]), int(match[2])
        if rows > 0 and columns > 0:
            return Block(rows, columns)
        raise PatternError(f"{text!r}: a block needs at least one row and one column, e.g. block:4x1.")
    if match := re.fullmatch(r"grouped:(\d+)(?:x(\d+))?(:l2)?(:learned)?", text):
        from sparsify.parts.grouped import Grouped

        rows, columns = int(match[1]), int(match[2] or 1)
        if rows > 0 and columns > 0:
            return Grouped(rows, columns, "l2" if match[3] else "l1", "learned" if match[4] else "contiguous")
        raise PatternError(f"{text!r}: a group needs at least one output and a chunk one input, e.g. grouped:64x4.")
    raise PatternError(f"there is no pattern {text!r}. Write one of: {', '.join(SPELLINGS)}.")


def top(scores: Tensor, count: int, *, among: Tensor | None = None) -> Tensor:
    """Mask of the ``count`` highest entries of a 1-d tensor; ties go to lower indices.

    Args:
        scores: float, [U].
        count: how many, from 0 to the number of candidates.
        among: bool, [U]; the candidates. None: all.

    Raises:
        ValueError: If there are fewer candidates than ``count``, or one of the best is NaN.
    """
    if scores.dtype in (torch.bfloat16, torch.float16):
        scores = scores.float()  # the same order, in a type that every selection knows
    size = scores.numel() if among is None else int(among.count_nonzero())
    if not 0 <= count <= size:
        raise ValueError(f"cannot choose {count} of {size}")
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if count == size:
        return torch.ones_like(scores, dtype=torch.bool) if among is None else among.clone()
    threshold = _highest(scores, among, count)
    if threshold != threshold:
        raise ValueError("the scores hold NaN")
    mask = scores >= threshold
    if among is not None:
        mask &= among
        del among  # a temporary of the caller's: masks of large weights are what a round's peak memory is made of
    surplus = int(mask.count_nonzero()) - count
    if surplus:
        ties = (scores == threshold).logical_and_(mask).nonzero()[:, 0]
        mask[ties[len(ties) - surplus :]] = False
    return mask


def _highest(scores: Tensor, among: Tensor | None, count: int) -> float:
    """The ``count``-th highest candidate, by selection; NaN if a NaN is among the highest."""
    if scores.device.type != "cpu":
        pool = scores if among is None else scores[among]
        if pool.isnan().any():
            return float("nan")
        return float(pool.kthvalue(pool.numel() - count + 1).values)
    candidates = _plausible(scores, among, count)
    values = scores.detach().numpy()
    pool = values.copy() if candidates is None else values[candidates.numpy()]
    pool.partition(len(pool) - count)
    best = pool[len(pool) - count :]
    return float("nan") if np.isnan(best).any() else float(best[0])


def _plausible(scores: Tensor, among: Tensor | None, count: int) -> Tensor | None:
    """Candidates that may be among the ``count`` highest, judged by a sample of a large tensor; never too few."""
    stride = scores.numel() // SAMPLE | 1  # odd: a power of two would look at a few columns only
    if stride == 1:
        return among
    sample = scores[::stride] if among is None else scores[::stride][among[::stride]]
    size = scores.numel() if among is None else int(among.count_nonzero())
    share = count / size
    rank = math.ceil(share * len(sample) + 4 * math.sqrt(len(sample) * share * (1 - share)) + 1)
    if rank >= len(sample):
        return among
    plausible = (scores < torch.topk(sample, rank).values[-1]).logical_not_()  # NaN stays in, to be found
    if among is not None:
        plausible &= among
    return plausible if int(plausible.count_nonzero()) >= count else among
