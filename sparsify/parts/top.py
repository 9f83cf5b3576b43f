"""The highest entries of a tensor, by selection and not by sorting."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

SAMPLE = 16384
"""Positions looked at to narrow a selection before it is made exactly."""


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
