"""The interface of patterns. A pattern says which positions of a weight may be active together.

A weight has shape [O, I, *K]. A *unit* is what is dropped or grown as a whole: a position, or a block. Budgets count positions.
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
        """Check that the pattern fits a weight of this shape.

        Raises:
            PatternError: If it does not; the message names the weight, the shape and what to do.
        """

    def fitted(self, shape: Shape) -> Pattern:
        """Return the pattern with its sizes adapted to a weight of this shape; most patterns return themselves."""
        del shape
        return self

    @property
    def is_learned(self) -> bool:
        """Whether a selection also chooses which outputs form a group, besides positions."""
        return False

    def bound(self, mask: Tensor) -> Pattern:
        """Return the pattern with the groups of outputs that this mask shows; patterns without learned groups return themselves."""
        del mask
        return self

    def unsuited(self, shape: Shape) -> str | None:
        """Return why the pattern leaves a weight of this shape dense, or None if it is to be applied (`check` may still refuse it)."""
        del shape
        return None

    def unit_size(self, shape: Shape) -> int:
        """Return the number of positions in one unit of a budget."""
        del shape
        return 1

    def pool(self, values: Tensor) -> Tensor:
        """Sum values [O, I, *K] over each unit; returns a 1-d tensor with one entry per unit, in the order of flat positions."""
        return values.reshape(-1)

    def expand(self, units: Tensor, shape: Shape) -> Tensor:
        """Spread 1-d values, one per unit, over the positions [O, I, *K] of their units; the inverse of `reduce`."""
        return units.reshape(shape)

    def reduce(self, mask: Tensor) -> Tensor:
        """Turn a mask of positions [O, I, *K] into a 1-d mask of units."""
        return mask.reshape(-1)

    def fixed_density(self, shape: Shape) -> float | None:
        """Return the only density that the pattern allows, in (0, 1]; None if it allows any budget of whole units."""
        del shape
        return None

    @abc.abstractmethod
    def holds(self, mask: Tensor) -> bool:
        """Return whether a mask [O, I, *K] obeys the pattern."""

    def select(self, scores: Tensor, budget: int) -> Tensor:
        """Choose the mask with the highest total score and exactly ``budget`` active positions; ties go to lower flat indices.

        Args:
            scores: float [O, I, *K].
            budget: number of active positions, a whole number of units, 0 <= budget <= scores.numel().

        Raises:
            ValueError: If the budget is out of range or not a whole number of units.
        """
        shape = tuple(scores.shape)
        size = self.unit_size(shape)
        if not 0 <= budget <= scores.numel() or budget % size:
            raise ValueError(f"budget {budget} must be a multiple of {size} between 0 and {scores.numel()}")
        return self.expand(top(self.pool(scores), budget // size), shape)


class Balanced(Pattern):
    """A pattern whose groups all have the same number of active units. Rounds exchange units only inside a group."""

    @abc.abstractmethod
    def groups(self, values: Tensor) -> Tensor:
        """Turn a mask [O, I, *K] into a mask of units [groups, M]."""

    def group_scores(self, scores: Tensor) -> Tensor:
        """Turn scores [O, I, *K] into one score per unit, [groups, M]."""
        return self.groups(scores)

    @abc.abstractmethod
    def ungroup(self, groups: Tensor, shape: Shape) -> Tensor:
        """Turn a mask of units [groups, M] back into a mask of shape ``shape``; the inverse of `groups`."""
