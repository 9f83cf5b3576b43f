"""Figures of prediction sets, bool [N, K], and of answers that a model accepts or refuses, bool [N]."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsify.figures.arrays import Array, ArrayLike
from sparsify.figures.intervals import share_interval

MOST_SIZES = 100
"""Largest number of sizes whose coverage is measured; larger sets count as of this size."""


def hits(sets: ArrayLike, labels: ArrayLike) -> Array:
    """Return whether each set holds the label, bool [N]; ``sets`` bool [N, K], ``labels`` int [N]."""
    table, truth = np.asarray(sets, bool), np.asarray(labels)
    return table[np.arange(len(truth)), truth]


def set_figures(sets: ArrayLike, labels: ArrayLike) -> dict[str, Any]:
    """Measure prediction sets (Vovk et al. 2005; Angelopoulos and Bates 2021, arXiv:2107.07511).

    Args:
        sets: bool [N, K], N >= 1; True for the classes in the set of a sample.
        labels: int [N].

    Returns:
        ``coverage``, the share of sets that hold the label, and its 95 % interval of Wilson; ``mean_size`` and ``median_size``;
        ``singletons`` and ``empty``, shares of sets of one class and of none; ``sizes``, a row per size that occurs, with the number of
        samples and their coverage; ``class_coverage``, K entries, None for a class without samples.
    """
    table, truth = np.asarray(sets, bool), np.asarray(labels)
    held, size = hits(table, truth), table.sum(1)
    shown, classes = size.clip(max=MOST_SIZES), range(table.shape[1])
    return {
        "coverage": float(held.mean()),
        "interval": list(share_interval(int(held.sum()), len(held))),
        "mean_size": float(size.mean()),
        "median_size": float(np.median(size)),
        "singletons": float((size == 1).mean()),
        "empty": float((size == 0).mean()),
        "sizes": [
            {"size": int(k), "samples": int((shown == k).sum()), "coverage": float(held[shown == k].mean())}
            for k in np.unique(shown)
        ],
        "class_coverage": [float(held[truth == k].mean()) if (truth == k).any() else None for k in classes],
    }


def accepted_figures(accept: ArrayLike, right: ArrayLike) -> dict[str, Any]:
    """Measure a model that answers only some samples (Geifman and El-Yaniv 2017, arXiv:1705.08500).

    Args:
        accept: bool [N], N >= 1; True for samples that are answered.
        right: bool [N], whether the answer would be right.

    Returns:
        ``samples`` accepted and ``coverage``, their share; ``risk``, the share of wrong answers among them, None if there are none;
        ``risk_of_all``, the share of wrong answers if everything were answered; ``coverage_interval`` and ``risk_interval``, 95 % by
        Wilson.
    """
    taken, correct = np.asarray(accept, bool), np.asarray(right, bool)
    count, wrong = int(taken.sum()), int((taken & ~correct).sum())
    return {
        "samples": count,
        "coverage": count / len(taken),
        "coverage_interval": list(share_interval(count, len(taken))),
        "risk": wrong / count if count else None,
        "risk_interval": list(share_interval(wrong, count)) if count else None,
        "risk_of_all": float((~correct).mean()),
    }
