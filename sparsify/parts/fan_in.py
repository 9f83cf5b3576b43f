"""Constant fan-in: every output of a layer reads as many inputs, or none at all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.errors import PatternError
from sparsify.parts.patterns import Balanced, Shape, top
from sparsify.parts.topology import LazyTensor, made


@dataclass(frozen=True)
class FanIn(Balanced):
    """``fan-in``: each output keeps the same number of its own inputs (kernel positions count as inputs); one without any is ablated.

    A unit of the budget is one input for every output.
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
        """[O, I, *K] -> [O, I * prod(K)]."""
        return values.flatten(1)

    def ungroup(self, groups: Tensor, shape: Shape) -> Tensor:
        """The inverse of `groups`."""
        return groups.reshape(shape)

    def holds(self, mask: Tensor) -> bool:
        counts = self.groups(mask).sum(dim=1)
        return len(set(counts[counts > 0].tolist())) <= 1

    def select(self, scores: Tensor, budget: int) -> Tensor:
        if not 0 <= budget <= scores.numel() or budget % scores.shape[0]:
            raise ValueError(f"budget {budget} must be a multiple of {scores.shape[0]} between 0 and {scores.numel()}")
        return self.ungroup(_largest(self.groups(scores), budget // scores.shape[0]), tuple(scores.shape))


def exchange_inputs(
    mask: Tensor, drop_score: LazyTensor, grow_score: LazyTensor, fraction: float, *, ablate: float | None
) -> Tensor:
    """One round of SRigL (Lasby et al. 2024, arXiv:2305.02299): ablate outputs with few salient inputs, share theirs among the others.

    Salient are the positions a round of drop and grow over the whole layer would keep, and as many of the highest grow score as it would
    drop. An output with fewer than ``max(1, int(ablate * k))`` of them is ablated, k being the present fan-in; no more outputs than
    leave a whole, larger fan-in for the others, so that the number of active positions stays exact. The others keep what was kept,
    at most the new fan-in, and grow up to it.

    Args:
        mask: bool, [O, I, *K], of the pattern ``fan-in``.
        drop_score: float, the shape of ``mask``; read first.
        grow_score: float, the shape of ``mask``.
        fraction: of the active positions to exchange, in [0, 1]; the count is rounded down.
        ablate: share of the fan-in that has to be salient, from 0; None: no output is ablated.

    Returns:
        A new bool mask with as many active positions, of the same pattern.
    """
    drop_score, rows = made(drop_score).float(), mask.flatten(1)
    count, outputs = int(mask.count_nonzero()), mask.shape[0]
    dropped = int(fraction * count)
    kept = top(drop_score.reshape(-1), count - dropped, among=mask.reshape(-1)).reshape(rows.shape)
    grow_rows = made(grow_score).float().flatten(1)
    staying = torch.ones(outputs, dtype=torch.bool, device=mask.device)
    if ablate is not None:
        salient = (kept | top(grow_rows.reshape(-1), dropped).reshape(rows.shape)).sum(dim=1)
        present = count // max(int(rows.any(dim=1).count_nonzero()), 1)
        wanted = int((salient >= max(1, int(ablate * present))).count_nonzero())
        number = next(m for m in range(max(wanted, 1), outputs + 1) if count % m == 0 and count // m <= rows.shape[1])
        staying = top(salient.float(), number)
    fan_in = count // int(staying.count_nonzero())
    kept = kept & staying[:, None]
    kept &= _largest(drop_score.flatten(1).masked_fill(~kept, -torch.inf), fan_in)
    need = torch.where(staying, fan_in - kept.sum(dim=1), 0)
    order = grow_rows.masked_fill(kept, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    places = torch.arange(rows.shape[1], device=mask.device).expand_as(order) < need[:, None]
    return (kept | torch.zeros_like(kept).scatter_(1, order, places)).reshape(mask.shape)


def _largest(scores: Tensor, count: int) -> Tensor:
    """Mask of the ``count`` highest of each row; ties go to lower columns."""
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :count], True)
