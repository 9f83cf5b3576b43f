"""Confidences for selective prediction other than the highest probability, and which of them to use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsify.figures import metrics, selective
from sparsify.figures.arrays import Array, ArrayLike

NORMS = tuple(range(1, 9))
"""The values of p that are tried."""


@dataclass(frozen=True)
class Choice:
    """The confidence with the lowest AURC on held-out samples.

    Attributes:
        p: of `normalised_logit`; None: the highest probability, which also wins ties.
        aurc_probability: AURC by the highest probability, in [0, 1].
        aurc_norms: AURC by `normalised_logit`, for each p in `NORMS`.
    """

    p: int | None
    aurc_probability: float
    aurc_norms: dict[int, float]

    def confidence(self, probabilities: ArrayLike, logits: ArrayLike) -> Array:
        """Compute the chosen confidence, float64 [N], from calibrated probabilities [N, K] and logits [N, K] as trained."""
        if self.p is None:
            return np.asarray(probabilities, np.float64).max(1)
        return normalised_logit(logits, self.p)


def normalised_logit(logits: ArrayLike, p: int) -> Array:
    """Compute max of c / (p-norm of c), c = z - mean of z, in [0, 1] (Cattelan and Silva 2024, arXiv:2305.15508).

    It does not change if logits are multiplied by a number above 0 or if a constant is added. A logit of minus infinity is left out, and
    equal logits have confidence 0.

    Args:
        logits: [N, K], finite or minus infinity.
        p: the norm, at least 1.

    Raises:
        TrainingError: If a logit is NaN or plus infinity.
    """
    z = metrics.finite(logits, "logits", ordered=True).astype(np.float64)
    known = z > -np.inf
    count = np.maximum(known.sum(1, keepdims=True), 1)
    centred = np.where(known, z - np.where(known, z, 0.0).sum(1, keepdims=True) / count, 0.0)
    scale = np.abs(centred).max(1, keepdims=True)  # powers of large logits overflow otherwise
    shape = centred / np.where(scale > 0, scale, 1.0)
    norm = (np.abs(shape) ** p).sum(1) ** (1 / p)
    return np.where(known, shape, -np.inf).max(1) / np.where(norm > 0, norm, 1.0)


def chosen(probabilities: ArrayLike, logits: ArrayLike, labels: ArrayLike) -> Choice:
    """Choose the confidence by AURC on held-out samples, which should not be those it is then measured on.

    The answer is the class of the highest probability, whatever the confidence.

    Args:
        probabilities: calibrated, [N, K].
        logits: as trained, [N, K].
        labels: [N].

    Raises:
        TrainingError: If a probability or logit is not finite.
    """
    confidence, correct = metrics.top_label(probabilities, labels)
    plain = selective.aurc(selective.risk_coverage(confidence, correct))
    norms = {p: selective.aurc(selective.risk_coverage(normalised_logit(logits, p), correct)) for p in NORMS}
    best = min(norms, key=lambda p: norms[p])
    return Choice(best if norms[best] < plain else None, plain, norms)


def chosen_quality(choice: Choice, probabilities: ArrayLike, logits: ArrayLike, labels: ArrayLike) -> dict[str, Any]:
    """Measure the chosen confidence on test samples; returns plain numbers for ``metrics.json``.

    Args:
        choice: what held-out samples chose.
        probabilities: calibrated, [N, K], of the test samples.
        logits: as trained, [N, K].
        labels: [N].

    Returns:
        ``p``; ``held_out``, AURC by the highest ``probability`` and by each of the ``norms`` on the held-out samples; ``aurc`` and
        ``correctness_auroc`` by the chosen confidence on the test samples.
    """
    confidence, (_, correct) = choice.confidence(probabilities, logits), metrics.top_label(probabilities, labels)
    norms = {str(p): value for p, value in choice.aurc_norms.items()}
    return {
        "p": choice.p,
        "held_out": {"probability": choice.aurc_probability, "norms": norms},
        "aurc": selective.aurc(selective.risk_coverage(confidence, correct)),
        "correctness_auroc": selective.correctness_auroc(confidence, correct),
    }
