"""Averages of weights over steps."""

from __future__ import annotations

from torch import Tensor


def running_mean(mean: Tensor | None, value: Tensor, count: int) -> Tensor:
    """Update a running mean with one more value.

    Args:
        mean: mean of the first ``count - 1`` values; None if ``count`` is 1.
        value: the newest value, any shape.
        count: number of values including the newest, at least 1.

    Returns:
        The mean of all ``count`` values, a new tensor. If ``count`` is 1, it equals ``value`` bit for bit.
    """
    return value.clone() if mean is None else mean + (value - mean) / count
