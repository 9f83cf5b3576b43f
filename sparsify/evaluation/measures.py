"""Everything that is measured of one file, and of two files on the same samples, as plain numbers for ``metrics.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsify.errors import EvaluationError
from sparsify.figures import bootstrap, metrics, regression, resampled
from sparsify.figures.bootstrap import Figure
from sparsify.figures.classifier import draws_for, ood_quality, table_figures
from sparsify.figures.damage import damage
from sparsify.figures.intervals import paired_shares, share_interval
from sparsify.figures.ood_scores import scores
from sparsify.figures.sets import accepted_figures, set_figures
from sparsify.figures.softmax import softmax

Outputs = Mapping[str, np.ndarray]
Row = dict[str, Any]
BETTER: Mapping[str, int] = {
    "accuracy": 1, "nll": -1, "brier": -1, "signed_gap": 0, "aurc": -1, "correctness_auroc": 1, "set_coverage": 0, "set_size": -1,
    "accepted": 1, "accepted_risk": -1, "r2": 1, "rmse": -1, "mae": -1, "interval_coverage": 0, "interval_width": -1, "auroc": 1,
}  # fmt: skip
"""Which way a figure with an interval is better: 1 for up, -1 for down, 0 if neither."""


@dataclass(frozen=True)
class Answered:
    """What a file answers.

    Attributes:
        inside: outputs for the samples, by role.
        outside: the same for each set of out-of-distribution inputs, by name.
    """

    inside: Outputs
    outside: Mapping[str, Outputs]

    def tables(self) -> dict[str, np.ndarray]:
        """Return probabilities [N, K]: ``before`` calibration, the softmax of the logits, and ``after``, those of the file."""
        found = {"before": softmax(self.inside["logits"])} if "logits" in self.inside else {}
        return found | ({"after": self.inside["probabilities"]} if "probabilities" in self.inside else {})

    def final(self) -> np.ndarray:
        """Return the probabilities that count: those of the file, or without them, the softmax of its logits."""
        return list(self.tables().values())[-1]


def measured(found: Answered, targets: np.ndarray, where: str) -> Row:
    """Measure a file on samples.

    Args:
        found: what it answers.
        targets: class numbers [N], or numbers [N, ...] for a file with predictions.
        where: name of the file, for messages.

    Returns:
        For classes: ``before`` and ``after``, each `sparsify.figures.classifier.table_figures`, ``prediction_set`` and ``accept``; for
        numbers: ``numbers`` and ``interval``. ``ood`` by set; ``intervals``, the 95 % interval of each figure of `figures_of`, and the
        ``values`` of these, None if the samples do not define one. What the file has no outputs for is left out.

    Raises:
        EvaluationError: If targets do not fit the outputs.
    """
    row: Row = {}
    if "prediction" in found.inside:
        wanted = _like(targets, found.inside["prediction"], where)
        row["numbers"] = regression.errors(found.inside["prediction"], wanted)
        if {"lower", "upper"} <= found.inside.keys():
            low, high = (_ends(found.inside[name], wanted, name, where) for name in ("lower", "upper"))
            row["interval"] = {"coverage": regression.coverage(wanted, low, high), "width": regression.width(low, high)}
    else:
        row |= _classes(found, targets, where)
    row["ood"] = {
        name: ood_quality(found.inside, outside) for name, outside in found.outside.items() if scores(outside)
    }
    figures, samples = figures_of(found, targets, where), len(targets)
    values = {name: bootstrap.measured(figure, size) for name, (figure, size) in figures.items()}
    row["values"] = {name: value if math.isfinite(value) else None for name, value in values.items()}
    row["intervals"] = {
        name: _interval(name, figure, size, values[name], samples) for name, (figure, size) in figures.items()
    }
    return row


def _classes(found: Answered, labels: np.ndarray, where: str) -> Row:
    tables = found.tables()
    for table in tables.values():
        if int(labels.max()) >= table.shape[1]:
            raise EvaluationError(
                f"{where} knows {table.shape[1]} classes, and the labels go up to {int(labels.max())}. Give the data that the file is for."
            )
    row: Row = {when: table_figures(table, labels) for when, table in tables.items()}
    row["class_samples"] = np.bincount(labels, minlength=found.final().shape[1]).tolist()
    if "prediction_set" in found.inside:
        if found.inside["prediction_set"].shape != found.final().shape:
            raise EvaluationError(
                f"the prediction sets of {where} have shape {list(found.inside['prediction_set'].shape)}, its probabilities "
                f"{list(found.final().shape)}. Both should be [N, K]."
            )
        row["prediction_set"] = set_figures(found.inside["prediction_set"], labels)
    if "accept" in found.inside:
        row["accept"] = accepted_figures(found.inside["accept"], found.final().argmax(1) == labels)
    return row


def _like(targets: np.ndarray, prediction: np.ndarray, where: str) -> np.ndarray:
    """Return targets of the shape of the predictions; [N] and [N, 1] match."""
    sizes = [value.size // max(len(value), 1) for value in (targets, prediction)]
    if targets.shape != prediction.shape and sizes != [1, 1]:
        raise EvaluationError(
            f"{where} predicts {list(prediction.shape)}, and the targets have shape {list(targets.shape)}. Give the data of the file."
        )
    return targets.astype(np.float64).reshape(prediction.shape)


def _ends(ends: np.ndarray, wanted: np.ndarray, name: str, where: str) -> np.ndarray:
    if ends.size != wanted.size:
        raise EvaluationError(
            f"the output {name!r} of {where} has shape {list(ends.shape)}, its predictions {list(wanted.shape)}. Both should be alike."
        )
    return ends.reshape(wanted.shape)


def figures_of(found: Answered, targets: np.ndarray, where: str) -> dict[str, tuple[Figure, int | list[int]]]:
    """Return the figures that have intervals, by name, each with the number of samples that it is drawn from.

    Those of classes are of the probabilities that count (`Answered.final`). AUROC is named ``auroc.<set>.<score>``.
    """
    samples, inside = len(targets), found.inside
    if "prediction" in inside:
        wanted = _like(targets, inside["prediction"], where)
        named = resampled.of_numbers(inside["prediction"], wanted)
        if {"lower", "upper"} <= inside.keys():
            ends = [_ends(inside[name], wanted, name, where) for name in ("lower", "upper")]
            named |= resampled.of_intervals(wanted, ends[0], ends[1])
    else:
        named = resampled.of_table(found.final(), targets)
        if "prediction_set" in inside:
            named |= resampled.of_sets(inside["prediction_set"], targets)
        if "accept" in inside:
            named |= resampled.of_accepted(inside["accept"], found.final().argmax(1) == targets)
    figures: dict[str, tuple[Figure, int | list[int]]] = {name: (figure, samples) for name, figure in named.items()}
    ours = scores(inside)
    for name, outside in found.outside.items():
        theirs = scores(outside)
        for score, values in ours.items():
            sizes = [len(values), len(theirs[score])]
            figures[f"auroc.{name}.{score}"] = resampled.of_scores(values, theirs[score]), sizes
    return figures


SHARES = frozenset({"accuracy", "set_coverage", "accepted"})
"""Figures that are shares of the samples; their intervals are Wilson's, which hold for shares of 0 and 1 too."""


def _interval(name: str, figure: Figure, size: int | Sequence[int], value: float, samples: int) -> list[float] | None:
    if name in SHARES:
        return list(share_interval(round(value * samples), samples))
    found = bootstrap.bootstrap_interval(figure, size, resamples=draws_for(samples))
    return None if found is None else list(found)


def differences(ours: Answered, theirs: Answered, targets: np.ndarray, names: tuple[str, str]) -> list[Row]:
    """Compare two files on the same samples: each figure of the first minus that of the second.

    The accuracies are compared by the interval of Bonett and Price, all other figures by paired bootstrap.

    Returns:
        Rows with ``figure``, ``difference``, ``interval`` and ``verdict``: ``better`` or ``worse`` if the interval leaves out 0, for a
        figure of which neither is better ``higher`` or ``lower``, else ``no clear difference``; or with a ``reason``.
    """
    first, second = (figures_of(found, targets, name) for found, name in zip((ours, theirs), names, strict=True))
    rows: list[Row] = []
    for name, (figure, size) in first.items():
        if name not in second:
            continue
        other, row = second[name][0], {"figure": name}
        difference = bootstrap.measured(figure, size) - bootstrap.measured(other, size)
        if name == "accuracy":
            right = [found.final().argmax(1) == targets for found in (ours, theirs)]
            counts = int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
            difference, interval = paired_shares(*counts, len(targets))
        else:
            interval = bootstrap.bootstrap_difference(figure, other, size, resamples=draws_for(len(targets)))
        if interval is None or not math.isfinite(difference):
            rows.append({**row, "reason": "most draws of the samples do not define it"})
        else:
            rows.append(
                {**row, "difference": difference, "interval": list(interval), "verdict": verdict(name, interval)}
            )
    return rows


def verdict(figure: str, interval: tuple[float, float]) -> str:
    """Return what an interval of a difference says; see `differences`."""
    low, high = interval
    if low <= 0 <= high:
        return "no clear difference"
    way = BETTER[figure.partition(".")[0]]
    if not way:
        return "higher" if low > 0 else "lower"
    return "better" if (low > 0) == (way > 0) else "worse"


def class_changes(ours: Answered, theirs: Answered, labels: np.ndarray) -> Row:
    """Return what the first file loses beside the second, over all samples and by class (`sparsify.figures.damage`)."""
    chosen = [found.final().argmax(1) for found in (theirs, ours)]
    found, flips = (
        damage(chosen[0], chosen[1], labels, ours.final().shape[1]),
        metrics.flips(theirs.final(), ours.final(), labels),
    )
    return {
        "changed": found.churn,
        "changed_interval": list(found.churn_interval),
        "lost": flips.lost,
        "gained": flips.gained,
        "classes": [
            None
            if row is None
            else {"change": row.change, "interval": list(row.interval), "verdict": row.verdict, "samples": row.samples}
            for row in found.classes
        ],
    }
