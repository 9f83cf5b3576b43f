"""Layouts: how the active positions of a weight are stored as a small dense tensor.

With a grouped mask, all outputs of a group read the same inputs, and every group reads the same number of them. A weight [O, I, *K] whose
groups read k inputs each is therefore fully described by a compact tensor [O, k, *K] and the inputs of each group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.parts.patterns.grouped import Grouped


@dataclass(frozen=True)
class Layout:
    """The places of a compact tensor in its dense one.

    Attributes:
        shape: of the dense tensor, [O, I, *K].
        inputs: int64 [G, k], ascending within each row: the inputs that each of the G groups reads.
        order: int64 [O], a permutation of the outputs in which groups are consecutive; None for the natural order.
    """

    shape: tuple[int, ...]
    inputs: Tensor
    order: Tensor | None = None

    @property
    def rows(self) -> int:
        """Outputs per group."""
        return self.shape[0] // len(self.inputs)

    @property
    def compact_shape(self) -> tuple[int, ...]:
        """The shape of the compact tensor, [O, k, *K]."""
        return (self.shape[0], self.inputs.shape[1], *self.shape[2:])

    def gather(self, dense: Tensor) -> Tensor:
        """Read the compact tensor [O, k, *K] out of a dense one [O, I, *K]; its rows are in the order of the groups."""
        return dense[self._outputs(), self._inputs()]

    def scatter(self, compact: Tensor) -> Tensor:
        """Make the dense tensor [O, I, *K] of a compact one [O, k, *K]; it is 0 (False) everywhere else."""
        dense = compact.new_zeros(self.shape)
        dense[self._outputs(), self._inputs()] = compact
        return dense

    def covering(self, dense: Tensor) -> Layout:
        """Return a layout of the same groups with all inputs of this one, and all inputs at which ``dense`` [O, I, *K] is not 0.

        Every group of it reads as many inputs as the one that needs the most; those that need fewer read some at which both are 0.
        """
        rows = dense if self.order is None else dense[self.order]
        used = (rows != 0).reshape(len(self.inputs), self.rows, self.shape[1], -1).any(dim=3).any(dim=1)
        used.scatter_(1, self.inputs, True)
        kept = int(used.sum(dim=1).max())
        if kept == self.inputs.shape[1]:
            return self
        inputs = used.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :kept]
        return Layout(self.shape, inputs.sort(dim=1).values, self.order)

    def mask(self) -> Tensor:
        """Return the mask of the stored positions: bool [O, I, *K]."""
        return self.scatter(self.inputs.new_ones(self.compact_shape, dtype=torch.bool))

    def _outputs(self) -> Tensor:
        order = torch.arange(self.shape[0], device=self.inputs.device) if self.order is None else self.order
        return order.unsqueeze(1)

    def _inputs(self) -> Tensor:
        return self.inputs.repeat_interleave(self.rows, dim=0)


@dataclass(frozen=True)
class Positions:
    """The places of single values in a dense tensor of any shape.

    Attributes:
        shape: of the dense tensor.
        flat: int64 [n], the flat positions of the values, ascending.
    """

    shape: tuple[int, ...]
    flat: Tensor

    @property
    def compact_shape(self) -> tuple[int, ...]:
        """The shape of the values, [n]."""
        return tuple(self.flat.shape)

    def gather(self, dense: Tensor) -> Tensor:
        """Read the values [n] out of a dense tensor."""
        return dense.reshape(-1).index_select(0, self.flat)

    def scatter(self, compact: Tensor) -> Tensor:
        """Make the dense tensor of values [n]; it is 0 everywhere else."""
        dense = compact.new_zeros(self.shape)
        dense.view(-1).index_copy_(0, self.flat.to(compact.device), compact)
        return dense


def layout_of(mask: Tensor, pattern: Grouped) -> Layout | None:
    """Return the layout of a mask; None if its groups do not all read the same number of inputs, or read none or all.

    Args:
        mask: bool [O, I, *K].
        pattern: fitted to the shape of the mask. Learned groups are read off the mask.
    """
    bound = pattern.bound(mask)
    if not bound.holds(mask):
        return None
    used = bound.groups(mask).repeat_interleave(bound.columns, dim=1)
    kept = int(used[0].sum())
    if not 0 < kept < mask.shape[1]:
        return None
    inputs = used.nonzero()[:, 1].view(len(used), kept)
    order = torch.tensor(bound.order, device=mask.device) if bound.order else None
    return Layout(tuple(mask.shape), inputs, order)
