"""Figures of a classifier on inputs that changed: how far its confidence follows its accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsify.figures import metrics
from sparsify.figures.arrays import ArrayLike
from sparsify.figures.sets import accepted_figures, hits


def shift_figures(
    tables: Mapping[str, ArrayLike], outputs: Mapping[str, ArrayLike], labels: ArrayLike
) -> dict[str, Any]:
    """Measure a classifier on one set of inputs.

    Args:
        tables: probabilities [N, K], ``before`` and ``after`` calibration, or one of them.
        outputs: further outputs, by name; ``ood_score`` [N], ``prediction_set`` bool [N, K] and ``accept`` bool [N] are measured.
        labels: class numbers [N], N >= 1.

    Returns:
        ``before`` and ``after``, each ``accuracy``, ``confidence``, the mean of the highest probability, and ``ece``; where the outputs
        exist, ``ood_score``, its mean, ``set_coverage`` and ``set_size``, and ``accepted`` with ``accepted_risk``, which is None if nothing
        is accepted. Answers are those of the last table.
    """
    row: dict[str, Any] = {}
    right = np.zeros(0, bool)
    for when, table in tables.items():
        confidence, right = metrics.top_label(table, labels)
        row[when] = {
            "accuracy": float(right.mean()),
            "confidence": float(confidence.mean()),
            "ece": metrics.ece(table, labels),
        }
    if "ood_score" in outputs:
        row["ood_score"] = float(np.asarray(outputs["ood_score"], np.float64).mean())
    if "prediction_set" in outputs:
        sets = np.asarray(outputs["prediction_set"], bool)
        row |= {"set_coverage": float(hits(sets, labels).mean()), "set_size": float(sets.sum(1).mean())}
    if "accept" in outputs:
        taken = accepted_figures(outputs["accept"], right)
        row |= {"accepted": taken["coverage"], "accepted_risk": taken["risk"]}
    return row
