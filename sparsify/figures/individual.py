"""Individual calibration: how far the confidence of each sample is from the centre of its own interval. No bins, so small classes count."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsify.figures.arrays import Array, ArrayLike
from sparsify.figures.metrics import doubles


def individual_errors(probabilities: ArrayLike, centres: ArrayLike) -> Array:
    """Compute each sample's confidence minus the centre of the interval of its predicted class, [N], in [-1, 1].

    Positive is over-confident. The published code of CALIRARE compares with the interval of class 1 even if another class is predicted, and
    so charges a calibrated 0.05 with an error of 0.90.

    Args:
        probabilities: [N, K].
        centres: [N], each of the interval of p of the class that is predicted, clipped to [0, 1] (`sparsify.parts.jackknife.centres`).
    """
    table = doubles(probabilities, "probabilities")
    return table.max(1) - doubles(centres, "centres").clip(0, 1)


def individual_calibration(probabilities: ArrayLike, centres: ArrayLike, labels: ArrayLike) -> dict[str, Any]:
    """Compute the expected individual calibration error (EICE, Wu et al. 2023, arXiv:2307.09858), overall and by class of the label.

    Args:
        probabilities: [N, K], N at least 1.
        centres: [N], as for `individual_errors`.
        labels: [N].

    Returns:
        ``samples``, ``eice`` (mean |error|, in [0, 1]), ``signed`` (mean error, positive for over-confidence), and ``classes``: for each
        of K classes the same three, or None for a class without samples.
    """
    errors, truth = individual_errors(probabilities, centres), np.asarray(labels)
    classes = [truth == k for k in range(np.shape(probabilities)[1])]
    return {**_figures(errors), "classes": [_figures(errors[some]) if some.any() else None for some in classes]}


def _figures(errors: Array) -> dict[str, Any]:
    return {"samples": len(errors), "eice": float(abs(errors).mean()), "signed": float(errors.mean())}
