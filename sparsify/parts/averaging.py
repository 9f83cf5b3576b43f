"""Averages of weights over steps."""

from __future__ import annotations

from torch import Tensor


def running_mean(mean: Tensor | None, value: Tensor, count: int) -> Tensor:
    """The mean of ``count`` values, from that of the first ``count - 1`` and the last.

    Args:
        mean: of the values before; None where ``count`` is 1.
        value: the last, any shape.
        count: at least 1.

    Returns:
        A new tensor; equal to ``value``, bit for bit, where ``count`` is 1.
    """
    return value.clone() if mean is None else mean + (value - mean) / count
