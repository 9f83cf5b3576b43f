"""Scores of how well inputs belong to the training distribution, from logits [N, K]; higher = more in-distribution."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from sparsify.figures.arrays import Array, ArrayLike
from sparsify.figures.softmax import log_softmax, logsumexp, softmax


def maximum_probability(logits: ArrayLike) -> Array:
    """Compute the highest softmax probability, [N], in [1/K, 1] (Hendrycks & Gimpel 2017, arXiv:1610.02136)."""
    return softmax(logits).max(1)


def negative_entropy(logits: ArrayLike) -> Array:
    """Compute the sum of p ln p over classes, [N], from -ln K to 0."""
    logs = log_softmax(logits)
    return (np.exp(logs) * np.where(logs == -np.inf, 0.0, logs)).sum(1)


def energy(logits: ArrayLike) -> Array:
    """Compute ln of the sum of exp(z), [N]: the negative free energy at temperature 1 (Liu et al. 2020, arXiv:2010.03759)."""
    return logsumexp(logits)


SCORES: Mapping[str, Callable[[ArrayLike], Array]] = {
    "maximum probability": maximum_probability,
    "entropy": negative_entropy,
    "energy": energy,
}
"""The scores that every classifier has, by name. They are computed from the trained logits of the known classes."""

SMALLEST = 1e-46
"""A probability smaller than every positive one that float32 can hold."""


def scores(outputs: Mapping[str, ArrayLike]) -> dict[str, Array]:
    """Compute every score that the outputs of a model allow: those of `SCORES`, and those of its heads, ``ood_score`` and ``unknown``.

    Args:
        outputs: by name, each optional: ``logits`` [N, K]; ``ood_score`` [N]; ``unknown`` [N], the probability u of the unknown class,
            whose score is -ln u.
    """
    found = {name: score(outputs["logits"]) for name, score in SCORES.items()} if "logits" in outputs else {}
    if "ood_score" in outputs:
        found["ood_score"] = np.asarray(outputs["ood_score"], np.float64)
    if "unknown" in outputs:
        found["unknown"] = -np.log(np.maximum(np.asarray(outputs["unknown"], np.float64), SMALLEST))
    return found
