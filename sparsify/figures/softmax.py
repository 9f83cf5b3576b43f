"""Probabilities from logits, in float64. A row with NaN or an infinite logit has no probabilities: they are NaN."""

from __future__ import annotations

import numpy as np

from sparsify.figures.arrays import Array, ArrayLike


def logsumexp(logits: ArrayLike) -> Array:
    """Compute ln of the sum of exp(z) over the last dimension, [...], from logits [..., K]."""
    below, highest = _below_highest(logits)
    return np.log(np.exp(below).sum(-1)) + highest[..., 0]


def log_softmax(logits: ArrayLike) -> Array:
    """Compute the logarithms of `softmax`, [..., K]."""
    below, _ = _below_highest(logits)
    return below - np.log(np.exp(below).sum(-1, keepdims=True))


def softmax(logits: ArrayLike) -> Array:
    """Compute probabilities [..., K] from logits [..., K]; -inf gives 0."""
    powers = np.exp(_below_highest(logits)[0])
    return powers / powers.sum(-1, keepdims=True)


def _below_highest(logits: ArrayLike) -> tuple[Array, Array]:
    """Return how far logits lie above the highest of their row, [..., K], and that, [..., 1]."""
    values = np.asarray(logits, np.float64)
    highest = values.max(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return values - highest, highest
