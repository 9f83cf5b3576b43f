"""Find the highest entries of a tensor by selection, which is faster than sorting."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Values = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]

SAMPLE = 16384
"""How many positions are sampled to narrow down the candidates before the exact selection."""


def top(scores: Tensor, count: int, *, among: Tensor | None = None) -> Tensor:
    """Return a bool mask [U] of the ``count`` highest entries of a 1-d tensor; ties go to lower indices.

    Args:
        scores: float [U].
        count: number of entries, from 0 to the number of candidates.
        among: bool [U]; the candidates. None: all entries.

    Raises:
        ValueError: If there are fewer candidates than ``count``, or one of the best is NaN.
    """
    if scores.dtype in (torch.bfloat16, torch.float16):
        scores = scores.float()  # keeps the order, in a dtype that every selection supports
    size = scores.numel() if among is None else ones(among)
    if not 0 <= count <= size:
        raise ValueError(f"cannot choose {count} of {size}")
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if count == size:
        return torch.ones_like(scores, dtype=torch.bool) if among is None else among.clone()
    threshold = _highest(scores, among, count, size)
    if threshold != threshold:
        raise ValueError("the scores hold NaN")
    mask = _at_least(scores, threshold)
    if among is not None:
        mask &= among
        del among  # free the caller's temporary mask: masks of large weights make up most of a round's peak memory
    surplus = ones(mask) - count
    if surplus:
        ties = (scores == threshold).logical_and_(mask).nonzero()[:, 0]
        mask[ties[len(ties) - surplus :]] = False
    return mask


def ones(mask: Tensor) -> int:
    """Count the True entries of a bool tensor. On a CPU, numpy counts several times as fast as torch."""
    return int(np.count_nonzero(mask.numpy())) if mask.is_cpu else int(mask.count_nonzero())


def _at_least(scores: Tensor, threshold: float) -> Tensor:
    """Return a mask of scores >= ``threshold``. On a CPU, numpy compares several times as fast as torch."""
    if not scores.is_cpu:
        return scores >= threshold
    values = scores.detach().numpy()
    return torch.from_numpy(values >= values.dtype.type(threshold))


def _highest(scores: Tensor, among: Tensor | None, count: int, size: int) -> float:
    """Find the ``count``-th highest of ``size`` candidates by selection; NaN if a NaN is among the highest."""
    if not scores.is_cpu:
        pool = scores if among is None else scores[among]
        if pool.isnan().any():
            return float("nan")
        return float(pool.kthvalue(pool.numel() - count + 1).values)
    values = scores.detach().numpy()
    candidates = _plausible(values, None if among is None else among.numpy(), count, size)
    pool = values.copy() if candidates is None else np.compress(candidates, values)
    pool.partition(len(pool) - count)
    best = pool[len(pool) - count :]
    return float("nan") if np.isnan(best).any() else float(best[0])


def _plausible(values: Values, among: Flags | None, count: int, size: int) -> Flags | None:
    """Find candidates that may be among the ``count`` highest, from a sample of a large array; never leaves out one of the highest."""
    stride = values.size // SAMPLE | 1  # an odd stride: a power of two would only sample a few columns
    if stride == 1:
        return among
    sample = values[::stride].copy() if among is None else np.compress(among[::stride], values[::stride])
    share = count / size
    rank = math.ceil(share * len(sample) + 4 * math.sqrt(len(sample) * share * (1 - share)) + 1)
    if rank >= len(sample):
        return among
    sample.partition(len(sample) - rank)
    plausible = ~(values < sample[len(sample) - rank])  # keeps NaN, so that it is found later
    if among is not None:
        plausible &= among
    return plausible if np.count_nonzero(plausible) >= count else among
