"""Figures as functions of draws of the samples, by name, for intervals by bootstrap (`sparsify.figures.bootstrap`).

Calibration errors that sort samples into bins are not among them: they are larger for draws than for the samples, above all where a model
is calibrated, so that quantiles of the draws do not bound the error. NLL, Brier score, and confidence less accuracy are means.
"""

from __future__ import annotations

import numpy as np

from sparsify.figures import bootstrap, metrics, selective
from sparsify.figures.arrays import Array, ArrayLike
from sparsify.figures.bootstrap import Figure
from sparsify.figures.classifier import LEAST_ANSWERS
from sparsify.figures.sets import hits


def mean(values: ArrayLike) -> Figure:
    """Make the figure that is the mean of one value per sample, [N]."""
    found = np.asarray(values, np.float64)
    return bootstrap.share(found, np.ones(len(found)))


def of_table(probabilities: ArrayLike, labels: ArrayLike) -> dict[str, Figure]:
    """Make accuracy, NLL, Brier score, signed gap, AURC and AUROC of correctness of probabilities [N, K] and labels [N].

    AURC and AUROC are left out with fewer than `LEAST_ANSWERS` wrong answers, or right ones: their intervals would be too narrow.

    Raises:
        TrainingError: If a probability is not finite.
    """
    table, truth = metrics.doubles(probabilities, "probabilities"), np.asarray(labels)
    confidence, right = metrics.top_label(table, truth)
    rows = np.arange(len(truth))
    found = {
        "accuracy": mean(right),
        "nll": mean(-np.log(np.maximum(table[rows, truth], metrics.LEAST))),
        "brier": mean(((table - np.eye(table.shape[1])[truth]) ** 2).sum(1)),
        "signed_gap": mean(confidence - right),
    }
    if min(int(right.sum()), int((~right).sum())) >= LEAST_ANSWERS:
        found["aurc"] = selective.resampled_aurc(confidence, right)
        found["correctness_auroc"] = bootstrap.auroc(confidence, right)
    return found


def of_sets(sets: ArrayLike, labels: ArrayLike) -> dict[str, Figure]:
    """Make coverage and mean size of prediction sets, bool [N, K], for labels [N]."""
    return {"set_coverage": mean(hits(sets, labels)), "set_size": mean(np.asarray(sets, bool).sum(1))}


def of_accepted(accept: ArrayLike, right: ArrayLike) -> dict[str, Figure]:
    """Make the share of accepted samples, bool [N], and the share of wrong answers among them."""
    taken, wrong = np.asarray(accept, bool), ~np.asarray(right, bool)
    return {"accepted": mean(taken), "accepted_risk": bootstrap.share(taken & wrong, taken)}


def of_numbers(prediction: ArrayLike, target: ArrayLike) -> dict[str, Figure]:
    """Make R2, RMSE and MAE of predictions [N, ...] and targets of the same shape."""
    found, wanted = np.asarray(prediction, np.float64), np.asarray(target, np.float64)
    error = (found - wanted).reshape(len(found), -1)
    squares = mean((error**2).mean(1))
    return {
        "r2": bootstrap.r2(found, wanted),
        "rmse": lambda draws: np.sqrt(squares(draws)),
        "mae": mean(abs(error).mean(1)),
    }


def of_intervals(target: ArrayLike, lower: ArrayLike, upper: ArrayLike) -> dict[str, Figure]:
    """Make coverage and mean width of intervals [N, ...] for targets of the same shape."""
    wanted, low, high = (np.asarray(values, np.float64) for values in (target, lower, upper))
    held = ((wanted >= low) & (wanted <= high)).reshape(len(wanted), -1)
    return {
        "interval_coverage": mean(held.mean(1)),
        "interval_width": mean((high - low).reshape(len(wanted), -1).mean(1)),
    }


def of_scores(inside: Array, outside: Array) -> Figure:
    """Make AUROC of scores [N] against scores [M], from draws [B, N + M] of both."""
    return bootstrap.auroc(np.concatenate([inside, outside]), np.arange(len(inside) + len(outside)) < len(inside))
