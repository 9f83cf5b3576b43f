"""A round that exchanges the inputs of whole outputs, and may ablate outputs (SRigL)."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsify.parts.patterns.fan_in import largest_of_rows
from sparsify.parts.top import top
from sparsify.parts.topology import LazyTensor, made


def exchange_inputs(
    mask: Tensor, drop_score: LazyTensor, grow_score: LazyTensor, fraction: float, *, ablate: float | None
) -> Tensor:
    """Do one round of SRigL (Lasby et al. 2024, arXiv:2305.02299): ablate outputs with few salient inputs and give theirs to the others.

    A position is salient if a round of drop and grow over the whole layer would keep it, or if it is among the highest grow scores, as
    many as the round would drop. An output with fewer than ``max(1, int(ablate * k))`` salient positions is ablated; k is the present
    fan-in. Only so many outputs are ablated that the others get a larger fan-in which is a whole number, so that the number of active
    positions stays exact. Each other output keeps its best kept positions, at most the new fan-in, and grows up to it.

    Args:
        mask: bool [O, I, *K], with pattern ``fan-in``.
        drop_score: float, of the shape of ``mask``; the lowest are dropped. Read first.
        grow_score: float, of the shape of ``mask``; the highest are grown.
        fraction: share of the active positions to exchange, in [0, 1]; the count is rounded down.
        ablate: an output is ablated if less than this share of its fan-in is salient, at least 0. None: no output is ablated.

    Returns:
        A new bool mask with the same number of active positions and the same pattern.
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
    kept &= largest_of_rows(drop_score.flatten(1).masked_fill(~kept, -torch.inf), fan_in)
    need = torch.where(staying, fan_in - kept.sum(dim=1), 0)
    order = grow_rows.masked_fill(kept, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    places = torch.arange(rows.shape[1], device=mask.device).expand_as(order) < need[:, None]
    return (kept | torch.zeros_like(kept).scatter_(1, order, places)).reshape(mask.shape)
