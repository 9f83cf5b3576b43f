"""Figures of predicted numbers [N, ...], and of intervals that should hold the true ones, in float64."""

from __future__ import annotations

import math

import numpy as np

from sparsify.figures.arrays import ArrayLike


def errors(prediction: ArrayLike, target: ArrayLike) -> dict[str, float]:
    """Compute R2, RMSE and MAE over all values, by name.

    R2 = 1 - (sum of squared errors) / (sum of squares about each output's mean), over all outputs together; scikit-learn's
    ``r2_score(..., multioutput="variance_weighted")``. If all targets are equal, it is 1 without an error, else 0.

    Args:
        prediction: [N, ...].
        target: of the same shape.

    Raises:
        ValueError: If the shapes differ.
    """
    found, wanted = np.asarray(prediction, np.float64), np.asarray(target, np.float64)
    if found.shape != wanted.shape:
        raise ValueError(f"expected two arrays of one shape; found {list(found.shape)} and {list(wanted.shape)}")
    error = found - wanted
    squares, spread = float((error**2).sum()), float(((wanted - wanted.mean(0)) ** 2).sum())
    r2 = 1 - squares / spread if spread else float(squares == 0)
    return {"r2": r2, "rmse": math.sqrt(float((error**2).mean())), "mae": float(np.abs(error).mean())}


def coverage(target: ArrayLike, lower: ArrayLike, upper: ArrayLike) -> float:
    """Compute the share of targets within their interval, bounds included, in [0, 1].

    Args:
        target: [N, ...].
        lower: of the same shape.
        upper: of the same shape.
    """
    wanted = np.asarray(target)
    return float(((wanted >= np.asarray(lower)) & (wanted <= np.asarray(upper))).mean())


def width(lower: ArrayLike, upper: ArrayLike) -> float:
    """Compute the mean width of intervals [N, ...]; 0 if there are none."""
    widths = np.asarray(upper, np.float64) - np.asarray(lower, np.float64)
    return float(widths.mean()) if widths.size else 0.0
