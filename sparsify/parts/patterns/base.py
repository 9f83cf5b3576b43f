"""What a pattern is: which positions of a weight may be active together.

A weight is [O, I, *K]. A *unit* is what is dropped or grown as one: a position, or a block. Budgets count positions.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

from torch import Tensor

from sparsify.parts.top import top

Shape = tuple[int, ...]


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
        """[O, I, *K] values -> 1-d, one per unit (the sum over it), in the order of flat positions."""
        return values.reshape(-1)

    def expand(self, units: Tensor, shape: Shape) -> Tensor:
        """1-d values, one per unit -> [O, I, *K]; the inverse of `reduce`."""
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


class Balanced(Pattern):
    """Equal numbers of active units in every group of a weight; rounds exchange units inside a group."""

    @abc.abstractmethod
    def groups(self, values: Tensor) -> Tensor:
        """Mask [O, I, *K] -> mask of units [groups, M]."""

    def group_scores(self, scores: Tensor) -> Tensor:
        """Scores [O, I, *K] -> one per unit, [groups, M]."""
        return self.groups(scores)

    @abc.abstractmethod
    def ungroup(self, groups: Tensor, shape: Shape) -> Tensor:
        """The inverse of `groups`."""
