"""What is measured of one classifier, as plain numbers for ``metrics.json``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsify.figures import bootstrap, metrics, selective
from sparsify.figures.arrays import Array, ArrayLike
from sparsify.figures.bootstrap import Figure
from sparsify.figures.ood_scores import scores

LEAST_RESAMPLES = 200
"""Smallest number of draws for an interval."""
BINS = 40
"""Bins of a histogram of scores."""
RISKS = (0.01, 0.05)
"""Shares of wrong answers at which the share of samples that can be answered is measured."""
POINTS = 100
"""Largest number of points of a risk-coverage curve in ``metrics.json``."""
RESAMPLED = {"aurc": selective.resampled_aurc, "correctness_auroc": bootstrap.auroc}
"""Figures of selective prediction that have an interval, and how they are computed for draws of the samples."""
DRAWN = 4 * 10**6
"""How many samples all draws for such an interval may hold together."""
BOTH = (
    "nll", "brier", "ece", "mce", "debiased_l2", "signed_gap", "aurc", "excess_aurc", "correctness_auroc",
)  # fmt: skip
"""Figures of `quality` before and after calibration, under names with ``_before`` and ``_after``."""
CURVES = ("reliability", "coverage_at_risk", "risk_coverage")
"""Entries of `table_figures` that are no single numbers, but for classes."""
LEAST_ANSWERS = 20
"""Smallest number of wrong answers of either model, and of right ones, for such an interval; with fewer, it would be too narrow."""


def table_figures(probabilities: ArrayLike, labels: ArrayLike) -> dict[str, Any]:
    """Compute accuracy, calibration and selective prediction from one table of probabilities [N, K] and labels [N], by name.

    Raises:
        TrainingError: If a probability is not finite.
    """
    curve = selective.risk_coverage(*metrics.top_label(probabilities, labels))
    drawn = selective.thinned(curve, POINTS)
    return {
        "accuracy": metrics.accuracy(probabilities, labels),
        "class_accuracy": metrics.class_accuracy(probabilities, labels),
        "nll": metrics.nll(probabilities, labels),
        "brier": metrics.brier(probabilities, labels),
        "ece": metrics.ece(probabilities, labels),
        "mce": metrics.mce(probabilities, labels),
        "debiased_l2": metrics.debiased_l2(probabilities, labels),
        "signed_gap": metrics.signed_gap(probabilities, labels),
        "adaptive_ece": metrics.adaptive_ece(probabilities, labels),
        "classwise_ece": metrics.classwise_ece(probabilities, labels),
        "reliability": [dataclasses.asdict(row) for row in metrics.reliability(probabilities, labels)],
        "aurc": selective.aurc(curve),
        "excess_aurc": selective.excess_aurc(curve),
        "correctness_auroc": selective.correctness_auroc(*metrics.top_label(probabilities, labels)),
        "coverage_at_risk": [
            {"at_most": most, **dataclasses.asdict(selective.coverage_at_risk(curve, most))} for most in RISKS
        ],
        "risk_coverage": {"coverage": drawn.coverage.tolist(), "risk": drawn.risk.tolist()},
    }


def quality(before: ArrayLike, after: ArrayLike, labels: ArrayLike) -> dict[str, Any]:
    """Compute `table_figures` before and after calibration, as ``metrics.json`` holds them.

    Args:
        before: probabilities [N, K] as trained.
        after: probabilities [N, K] of the calibration head.
        labels: [N].
    """
    found = {"before": table_figures(before, labels), "after": table_figures(after, labels)}
    return {
        "accuracy": found["before"]["accuracy"],
        "accuracy_after": found["after"]["accuracy"],
        "class_accuracy": found["before"]["class_accuracy"],
        **{f"{key}_{when}": row[key] for key in BOTH for when, row in found.items()},
        **{key: found["after"][key] for key in ("adaptive_ece", "classwise_ece")},
        **{key: {when: row[key] for when, row in found.items()} for key in CURVES},
    }


def selective_differences(model: ArrayLike, dense: ArrayLike, labels: ArrayLike) -> dict[str, Any]:
    """Compute the figures of selective prediction of a model minus those of its baseline, with 95 % intervals by paired bootstrap.

    Args:
        model, dense: calibrated probabilities [N, K] of the test samples.
        labels: [N].

    Returns:
        Rows of `difference_row` by figure; the figures are those after calibration in `quality`. There is a reason instead of an
        interval if a model has fewer than `LEAST_ANSWERS` wrong answers, or right ones.
    """
    pairs = [metrics.top_label(table, labels) for table in (model, dense)]
    samples = len(pairs[0][0])
    for kind, answers in (("wrong", [~right for _, right in pairs]), ("right", [right for _, right in pairs])):
        fewest = min(int(given.sum()) for given in answers)
        if fewest < LEAST_ANSWERS:
            reason = f"one of the models has {fewest} {kind} answers, and an interval needs {LEAST_ANSWERS}"
            return {f"{name}_after": {"figure": f"{name}_after", "reason": reason} for name in RESAMPLED}
    found = dict[str, Any]()
    for name, figure in RESAMPLED.items():
        ours, theirs = (figure(*pair) for pair in pairs)
        found[f"{name}_after"] = difference_row(f"{name}_after", ours, theirs, samples, draws_for(samples))
    return found


def draws_for(samples: int) -> int:
    """Return how many draws of this many samples an interval of a figure that sorts them gets."""
    return max(LEAST_RESAMPLES, min(bootstrap.RESAMPLES, DRAWN // samples))


def difference_row(name: str, ours: Figure, theirs: Figure, samples: int, resamples: int) -> dict[str, Any]:
    """Compute a figure of a model minus that of another, with a 95 % interval by paired bootstrap over samples.

    Returns:
        ``figure``, ``difference``, ``interval`` and ``resamples``; ``figure`` and ``reason`` if most draws do not define the figure.
    """
    difference = bootstrap.measured(ours, samples) - bootstrap.measured(theirs, samples)
    interval = bootstrap.bootstrap_difference(ours, theirs, samples, resamples=resamples)
    if interval is None or not math.isfinite(difference):
        return {"figure": name, "reason": "most draws of the samples do not define it"}
    return {"figure": name, "difference": difference, "interval": list(interval), "resamples": resamples}


def ood_quality(
    inside: Mapping[str, ArrayLike],
    outside: Mapping[str, ArrayLike],
    further: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
) -> dict[str, Any]:
    """Measure how well each score tells test inputs from out-of-distribution ones.

    Args:
        inside: outputs on the test set, from which `sparsify.figures.ood_scores.scores` computes at least one score.
        outside: the same on out-of-distribution inputs [M].
        further: other scores by name, on the test set [N] and on the others [M]; one that has a name of the former is left out.
    """
    theirs, found = scores(outside), dict[str, Any]()
    pairs = {
        name: (np.asarray(ours, np.float64), np.asarray(others, np.float64))
        for name, (ours, others) in (further or {}).items()
    }
    pairs |= {name: (ours, theirs[name]) for name, ours in scores(inside).items()}
    for name in (*theirs, *(name for name in pairs if name not in theirs)):
        ours, others = pairs[name]
        found[name] = {
            "auroc": metrics.auroc(ours, others),
            "aupr_in": metrics.aupr(ours, others),
            "aupr_out": metrics.aupr(-others, -ours),
            "fpr_at_95_tpr": metrics.fpr_at_95_tpr(ours, others),
            "fpr_at_95_tpr_outside": metrics.fpr_at_95_tpr_outside(ours, others),
            "histogram": _histogram(ours, others),
        }
    return {"samples": len(next(iter(theirs.values()))), "scores": found}


def _histogram(inside: Array, outside: Array) -> dict[str, Any]:
    """Return counts in `BINS` bins of equal width over all of both."""
    both = np.concatenate([inside, outside])
    low, high = float(both.min()), float(both.max())
    counts = [np.histogram(x, BINS, (low, high))[0].tolist() if high > low else [len(x)] for x in (inside, outside)]
    return {"low": low, "high": high, "inside": counts[0], "outside": counts[1]}
