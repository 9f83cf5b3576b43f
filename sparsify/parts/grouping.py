"""Grouping: which outputs of a layer share a group, chosen so that the inputs they share cost least.

A group of outputs keeps its k inputs of highest total score. Two steps alternate, and neither lowers what is kept: inputs are chosen for
given groups, and outputs are exchanged between groups for given inputs (a k-means of balanced size). A grouping is not stored anywhere:
outputs of one group have the same active inputs, so that a mask shows its own (`order_by_inputs`).
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 30


def order_by_inputs(used: Tensor, rows: int) -> Tensor | None:
    """An order of the outputs in which every ``rows`` consecutive ones read the same inputs, or None where there is none.

    Outputs that read fewer inputs than a group (a weight may be 0 by chance, an output dead) go where they fit and are needed.

    Args:
        used: bool [O, I], the inputs each output reads.
        rows: outputs a group, a divisor of O.

    Returns:
        int64 [O], a permutation; ascending within each group, groups by their first output.
    """
    used = used.cpu()
    outputs = len(used)
    distinct, of_output = used.unique(dim=0, return_inverse=True)
    values = distinct.float()
    within = values @ (1 - values).T == 0  # [a, b]: every input of a is one of b
    largest = (within & ~within.T).sum(dim=1) == 0
    if int(largest.sum()) * rows > outputs:
        return None
    fits = within[:, largest][of_output]  # [O, classes]
    owners = torch.full((outputs,), -1)
    clear = fits.sum(dim=1) == 1
    owners[clear] = fits[clear].int().argmax(dim=1)
    for output in (~clear).nonzero()[:, 0].tolist():
        lacking = (-torch.bincount(owners[owners >= 0], minlength=fits.shape[1])) % rows
        owners[output] = (lacking + 1).masked_fill(~fits[output], 0).argmax()
    if bool((torch.bincount(owners, minlength=fits.shape[1]) % rows).any()):
        return None
    return _order(_split(owners, rows))


def kept_score(scores: Tensor, order: Tensor, *, rows: int, kept: int) -> float:
    """Total score of the inputs kept when outputs ``order`` [O] are grouped ``rows`` at a time; scores [O, I], nonnegative."""
    totals = _totals(scores.double(), _owners(order, rows))
    return float(totals.topk(kept, dim=1).values.sum())


def group_outputs(scores: Tensor, *, rows: int, kept: int) -> Tensor:
    """An order of the outputs in which every ``rows`` consecutive ones make a good group; never worse than the order they come in.

    Args:
        scores: nonnegative, [O, I]; for convolutions summed over the kernel, for chunks of inputs over the chunk.
        rows: outputs a group, a divisor of O.
        kept: inputs a group keeps, 1 to I.

    Returns:
        int64 [O], a permutation; ascending within each group, groups by their first output.

    Raises:
        ValueError: If the sizes do not fit, or a score is not finite.
    """
    outputs, inputs = scores.shape
    if outputs % rows or not 1 <= kept <= inputs:
        raise ValueError(f"scores [{outputs}, {inputs}] cannot be grouped {rows} at a time with {kept} inputs each")
    values = scores.detach().double().cpu()
    if not bool(torch.isfinite(values).all()):
        raise ValueError("the scores hold NaN or infinity")
    given = torch.arange(outputs)
    if rows == outputs or kept == inputs or rows == 1:
        return given
    starts = [given, _by_favourite(values)]
    present = order_by_inputs(values > 0, rows)
    starts += [] if present is None else [present]
    found = [_improved(values, _owners(start, rows), kept) for start in starts]
    best = max(found, key=lambda owners: kept_score(values, _order(owners), rows=rows, kept=kept))
    return _order(best)


def _split(classes: Tensor, rows: int) -> Tensor:
    """Groups of ``rows`` outputs each, from classes of a multiple of ``rows``."""
    order = classes.argsort(stable=True)
    return _owners(order, rows)


def _owners(order: Tensor, rows: int) -> Tensor:
    """Group of each output, int64 [O]."""
    owners = torch.empty_like(order)
    owners[order] = torch.arange(len(order)) // rows
    return owners


def _order(owners: Tensor) -> Tensor:
    """Outputs by group, groups by their first output."""
    groups = int(owners.max()) + 1
    first = torch.full((groups,), len(owners)).scatter_reduce_(0, owners, torch.arange(len(owners)), "amin")
    return (first[owners] * len(owners) + torch.arange(len(owners))).argsort()


def _totals(values: Tensor, owners: Tensor) -> Tensor:
    """Scores summed over each group, [G, I]."""
    groups = int(owners.max()) + 1
    return torch.zeros(groups, values.shape[1], dtype=values.dtype).index_add_(0, owners, values)


def _by_favourite(values: Tensor) -> Tensor:
    """Outputs along the direction in which their profiles differ most, neighbours being alike."""
    shares = values / values.sum(dim=1, keepdim=True).clamp_min(1e-300)
    centred = shares - shares.mean(dim=0)
    vectors = torch.linalg.svd(centred, full_matrices=False)[0]
    return vectors[:, 0].argsort(stable=True)


def _improved(values: Tensor, owners: Tensor, kept: int) -> Tensor:
    """Inputs and owners in turn, until nothing changes."""
    owners = owners.clone()
    for _ in range(ROUNDS):
        totals = _totals(values, owners)
        chosen = torch.zeros_like(totals).scatter_(1, totals.topk(kept, dim=1).indices, 1.0)
        if not _exchange(values @ chosen.T, owners):
            break
    return owners


def _exchange(worth: Tensor, owners: Tensor) -> bool:
    """Swap outputs between pairs of groups, in place, where that raises the sum of ``worth`` [O, G] at their owners."""
    groups, moved = worth.shape[1], False
    smallest = 1e-9 * float(worth.abs().max())
    gains = worth - worth.gather(1, owners[:, None])
    best = torch.full((groups, groups), -torch.inf, dtype=worth.dtype)
    best.scatter_reduce_(0, owners[:, None].expand(-1, groups), gains, "amax")  # [a, b]: of an output of a, for moving to b
    for a, b in (best + best.T > smallest).triu(1).nonzero().tolist():
        of_a, of_b = (owners == a).nonzero()[:, 0], (owners == b).nonzero()[:, 0]
        gain_a, gain_b = worth[of_a, b] - worth[of_a, a], worth[of_b, a] - worth[of_b, b]
        best_a, best_b = gain_a.argsort(descending=True, stable=True), gain_b.argsort(descending=True, stable=True)
        count = int((gain_a[best_a] + gain_b[best_b] > smallest).sum())  # falling, so the first ones
        owners[of_a[best_a[:count]]], owners[of_b[best_b[:count]]] = b, a
        moved |= count > 0
    return moved
