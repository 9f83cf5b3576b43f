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
LEAST_ANSWERS = 20
"""Smallest number of wrong answers of either model, and of right ones, for such an interval; with fewer, it would be too narrow."""


def quality(before: ArrayLike, after: ArrayLike, labels: ArrayLike) -> dict[str, Any]:
    """Accuracy and calibration on the test set.

    Args:
        before: probabilities [N, K] as trained.
        after: probabilities [N, K] of the calibration head.
        labels: [N].
    """
    tables = (("before", before), ("after", after))
    return {
        "accuracy": metrics.accuracy(before, labels),
        "accuracy_after": metrics.accuracy(after, labels),
        "class_accuracy": metrics.class_accuracy(before, labels),
        **{f"nll_{when}": metrics.nll(table, labels) for when, table in tables},
        **{f"brier_{when}": metrics.brier(table, labels) for when, table in tables},
        **{f"ece_{when}": metrics.ece(table, labels) for when, table in tables},
        **{f"mce_{when}": metrics.mce(table, labels) for when, table in tables},
        **{f"debiased_l2_{when}": metrics.debiased_l2(table, labels) for when, table in tables},
        **{f"signed_gap_{when}": metrics.signed_gap(table, labels) for when, table in tables},
        "adaptive_ece": metrics.adaptive_ece(after, labels),
        "classwise_ece": metrics.classwise_ece(after, labels),
        "reliability": {
            when: [dataclasses.asdict(row) for row in metrics.reliability(table, labels)] for when, table in tables
        },
        **_selective({when: metrics.top_label(table, labels) for when, table in tables}),
    }


def _selective(answers: Mapping[str, tuple[Array, Array]]) -> dict[str, Any]:
    """Measure selective prediction before and after calibration, from the confidence and correctness of each answer."""
    curves = {when: selective.risk_coverage(*pair) for when, pair in answers.items()}
    drawn = {when: selective.thinned(curve, POINTS) for when, curve in curves.items()}
    return {
        **{f"aurc_{when}": selective.aurc(curve) for when, curve in curves.items()},
        **{f"excess_aurc_{when}": selective.excess_aurc(curve) for when, curve in curves.items()},
        **{f"correctness_auroc_{when}": selective.correctness_auroc(*pair) for when, pair in answers.items()},
        "coverage_at_risk": {
            when: [{"at_most": most, **dataclasses.asdict(selective.coverage_at_risk(curve, most))} for most in RISKS]
            for when, curve in curves.items()
        },
        "risk_coverage": {
            when: {"coverage": curve.coverage.tolist(), "risk": curve.risk.tolist()} for when, curve in drawn.items()
        },
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
    resamples = max(LEAST_RESAMPLES, min(bootstrap.RESAMPLES, DRAWN // samples))
    found = dict[str, Any]()
    for name, figure in RESAMPLED.items():
        ours, theirs = (figure(*pair) for pair in pairs)
        found[f"{name}_after"] = difference_row(f"{name}_after", ours, theirs, samples, resamples)
    return found


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


def ood_quality(inside: Mapping[str, ArrayLike], outside: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """Measure how well each score tells test inputs from out-of-distribution ones.

    Args:
        inside: outputs on the test set, from which `sparsify.figures.ood_scores.scores` computes at least one score.
        outside: the same on out-of-distribution inputs [M].
    """
    theirs, found = scores(outside), dict[str, Any]()
    for name, ours in scores(inside).items():
        found[name] = {
            "auroc": metrics.auroc(ours, theirs[name]),
            "aupr_in": metrics.aupr(ours, theirs[name]),
            "aupr_out": metrics.aupr(-theirs[name], -ours),
            "fpr_at_95_tpr": metrics.fpr_at_95_tpr(ours, theirs[name]),
            "fpr_at_95_tpr_outside": metrics.fpr_at_95_tpr_outside(ours, theirs[name]),
            "histogram": _histogram(ours, theirs[name]),
        }
    return {"samples": len(next(iter(theirs.values()))), "scores": found}


def _histogram(inside: Array, outside: Array) -> dict[str, Any]:
    """Return counts in `BINS` bins of equal width over all of both."""
    both = np.concatenate([inside, outside])
    low, high = float(both.min()), float(both.max())
    counts = [np.histogram(x, BINS, (low, high))[0].tolist() if high > low else [len(x)] for x in (inside, outside)]
    return {"low": low, "high": high, "inside": counts[0], "outside": counts[1]}
