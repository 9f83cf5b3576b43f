"""Entries set to 0 in place."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

PIECE = 1 << 18
"""Positions cleared at a time, so that what is made for them stays in the cache."""
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers by their size in bytes."""


def clear(values: Iterable[Tensor], where: Tensor) -> None:
    """Set the entries of each tensor to 0 where ``where`` is True, in place.

    On a CPU, bits are masked, which takes a fraction of the time of ``masked_fill_`` and leaves the same bits: +0 for every number, NaN
    and infinity included.

    Args:
        values: any type, each of the shape of ``where``.
        where: bool.
    """
    for value in values:
        word = WORDS.get(value.element_size()) if value.is_floating_point() else None
        if word is None or not (value.is_cpu and value.is_contiguous() and where.is_contiguous()):
            value.masked_fill_(where, 0)
            continue
        pieces = zip(value.view(word).view(-1).split(PIECE), where.view(torch.int8).view(-1).split(PIECE), strict=True)
        for bits, cleared in pieces:
            bits.bitwise_and_(cleared.to(word).sub_(1))
