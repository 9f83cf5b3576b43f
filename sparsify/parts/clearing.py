"""Set entries to 0 in place, and cut large tensors into pieces that fit the cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

PIECE = 1 << 18
"""Positions handled at a time, so that what is computed for them stays in the processor's cache."""
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers by their size in bytes."""


def clear(values: Iterable[Tensor], where: Tensor) -> None:
    """Set the entries of each tensor to 0 where ``where`` is True, in place.

    On a CPU, this masks bits, which takes a fraction of the time of ``masked_fill_`` and leaves the same bits: +0 for every number,
    including NaN and infinity.

    Args:
        values: tensors of any dtype, each of the shape of ``where``.
        where: bool.
    """
    for value in values:
        word = WORDS.get(value.element_size()) if value.is_floating_point() else None
        if word is None or not (value.is_cpu and value.is_contiguous() and where.is_contiguous()):
            value.masked_fill_(where, 0)
            continue
        for bits, cleared in in_pieces(value.view(word), where):
            bits.bitwise_and_(cleared.to(word).sub_(1))


def in_pieces(values: Tensor, mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut a tensor and its mask into flat views of at most `PIECE` positions.

    Args:
        values: contiguous.
        mask: bool, contiguous, of the shape of ``values``.

    Yields:
        The views of both; those of the mask are int8, 0 or 1.
    """
    yield from zip(values.view(-1).split(PIECE), mask.view(torch.int8).view(-1).split(PIECE), strict=True)
