"""Grouping: chooses which outputs of a layer form a group, so that sharing inputs loses as little score as possible.

A group of outputs keeps the k inputs with the highest total score. Two steps alternate, and neither lowers the kept score: choose inputs
for given groups, then exchange outputs between groups for given inputs (k-means with groups of equal size). A grouping is not stored:
outputs of one group have the same active inputs, so a mask shows its groups (`order_by_inputs`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDS = 30


def order_by_inputs(used: Tensor, rows: int) -> Tensor | None:
    """Find an order of the outputs in which every ``rows`` consecutive ones read the same inputs; None if there is no such order.

    An output may read fewer inputs than its group (a weight is 0 by chance, or the output is dead); it fills a group that it fits.

    Args:
        used: bool [O, I], the inputs that each output reads.
        rows: outputs per group; must divide O.

    Returns:
        int64 [O], a permutation; ascending within each group, groups by their first output.
    """
    return _filled(_fits(used), rows)


def shared_inputs(used: Tensor) -> tuple[int, Tensor] | None:
    """Find the largest groups of two or more outputs that read the same inputs; returns the group size and `order_by_inputs`.

    Returns None if there are no such groups, or if all outputs form a single one.
    """
    fits = _fits(used)
    outputs, classes = fits.shape
    for rows in range(outputs // max(classes, 1), 1, -1):
        if classes > 1 and outputs % rows == 0 and (order := _filled(fits, rows)) is not None:
            return rows, order
    return None


def _fits(used: Tensor) -> Tensor:
    """Return bool [O, classes]: whether a class contains all inputs of an output. A class is an input set that no other set contains."""
    distinct, of_output = used.cpu().unique(dim=0, return_inverse=True)
    values = distinct.float()
    within = values @ (1 - values).T == 0  # [a, b]: every input of a is one of b
    largest = (within & ~within.T).sum(dim=1) == 0
    return within[:, largest][of_output]


def _filled(fits: Tensor, rows: int) -> Tensor | None:
    outputs, classes = fits.shape
    if classes * rows > outputs:
        return None
    owners = torch.full((outputs,), -1)
    clear = fits.sum(dim=1) == 1
    owners[clear] = fits[clear].int().argmax(dim=1)
    for output in (~clear).nonzero()[:, 0].tolist():
        lacking = (-torch.bincount(owners[owners >= 0], minlength=classes)) % rows
        owners[output] = (lacking + 1).masked_fill(~fits[output], 0).argmax()
    if bool((torch.bincount(owners, minlength=classes) % rows).any()):
        return None
    return _order(_split(owners, rows))


def kept_score(scores: Tensor, order: Tensor, *, rows: int, kept: int) -> float:
    """Compute the total score kept if outputs in ``order`` [O] form groups of ``rows`` with ``kept`` inputs each; scores [O, I], >= 0."""
    totals = _totals(scores.double(), _owners(order, rows))
    return float(totals.topk(kept, dim=1).values.sum())


def group_outputs(scores: Sequence[Tensor], *, rows: int, kept: Sequence[int]) -> Tensor:
    """Find an order of the outputs in which every ``rows`` consecutive ones form a good group; never worse than the given order.

    Args:
        scores: one tensor [O, I] per layer, nonnegative; several layers share their groups of outputs. Scores of convolutions are summed
            over the kernel, and scores of chunks over the chunk.
        rows: outputs per group; must divide O.
        kept: for each layer, how many inputs a group keeps, 1 to I.

    Returns:
        int64 [O], a permutation; ascending within each group, groups by their first output.

    Raises:
        ValueError: If the sizes do not fit, or a score is not finite.
    """
    outputs = len(scores[0])
    for table, count in zip(scores, kept, strict=True):
        if outputs % rows or len(table) != outputs or not 1 <= count <= table.shape[1]:
            raise ValueError(
                f"cannot form groups of {rows} outputs that keep {count} inputs from scores {list(table.shape)}"
            )
    values = [table.detach().double().cpu() for table in scores]
    if not all(bool(torch.isfinite(table).all()) for table in values):
        raise ValueError("the scores hold NaN or infinity")
    given = torch.arange(outputs)
    free = [(table, count) for table, count in zip(values, kept, strict=True) if count < table.shape[1]]
    if rows == outputs or not free or rows == 1:
        return given
    starts = [given, _by_favourite(torch.cat([table for table, _ in free], dim=1))]
    present = order_by_inputs(torch.cat([table > 0 for table, _ in free], dim=1), rows)
    starts += [] if present is None else [present]
    found = [_order(_improved(free, _owners(start, rows))) for start in starts]
    return max(found, key=lambda order: sum(kept_score(t, order, rows=rows, kept=k) for t, k in free))


def _split(classes: Tensor, rows: int) -> Tensor:
    """Split classes, whose sizes are multiples of ``rows``, into groups of ``rows`` outputs."""
    order = classes.argsort(stable=True)
    return _owners(order, rows)


def _owners(order: Tensor, rows: int) -> Tensor:
    """Return the group of each output, int64 [O]."""
    owners = torch.empty_like(order)
    owners[order] = torch.arange(len(order)) // rows
    return owners


def _order(owners: Tensor) -> Tensor:
    """Return the outputs sorted by group; groups are sorted by their first output."""
    groups = int(owners.max()) + 1
    first = torch.full((groups,), len(owners)).scatter_reduce_(0, owners, torch.arange(len(owners)), "amin")
    return (first[owners] * len(owners) + torch.arange(len(owners))).argsort()


def _totals(values: Tensor, owners: Tensor) -> Tensor:
    """Sum scores over the outputs of each group, [G, I]."""
    groups = int(owners.max()) + 1
    return torch.zeros(groups, values.shape[1], dtype=values.dtype).index_add_(0, owners, values)


def _by_favourite(values: Tensor) -> Tensor:
    """Sort outputs along the direction in which their score profiles differ most, so that neighbours are alike."""
    shares = values / values.sum(dim=1, keepdim=True).clamp_min(1e-300)
    centred = shares - shares.mean(dim=0)
    vectors = torch.linalg.svd(centred, full_matrices=False)[0]
    return vectors[:, 0].argsort(stable=True)


def _improved(layers: Sequence[tuple[Tensor, int]], owners: Tensor) -> Tensor:
    """Choose inputs and exchange outputs in turn, until nothing changes."""
    owners = owners.clone()
    for _ in range(ROUNDS):
        worth = torch.zeros(len(owners), int(owners.max()) + 1, dtype=torch.float64)
        for values, kept in layers:
            totals = _totals(values, owners)
            chosen = torch.zeros_like(totals).scatter_(1, totals.topk(kept, dim=1).indices, 1.0)
            worth += values @ chosen.T
        if not _exchange(worth, owners):
            break
    return owners


def _exchange(worth: Tensor, owners: Tensor) -> bool:
    """Swap outputs between pairs of groups in place, if that raises the total ``worth`` [O, G] of outputs in their groups."""
    groups, moved = worth.shape[1], False
    smallest = 1e-9 * float(worth.abs().max())
    gains = worth - worth.gather(1, owners[:, None])
    best = torch.full((groups, groups), -torch.inf, dtype=worth.dtype)
    best.scatter_reduce_(
        0, owners[:, None].expand(-1, groups), gains, "amax"
    )  # [a, b]: the best gain of moving an output of group a to group b
    for a, b in (best + best.T > smallest).triu(1).nonzero().tolist():
        of_a, of_b = (owners == a).nonzero()[:, 0], (owners == b).nonzero()[:, 0]
        gain_a, gain_b = worth[of_a, b] - worth[of_a, a], worth[of_b, a] - worth[of_b, b]
        best_a, best_b = gain_a.argsort(descending=True, stable=True), gain_b.argsort(descending=True, stable=True)
        count = int((gain_a[best_a] + gain_b[best_b] > smallest).sum())  # gains fall, so these come first
        owners[of_a[best_a[:count]]], owners[of_b[best_b[:count]]] = b, a
        moved |= count > 0
    return moved
