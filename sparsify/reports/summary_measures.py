"""The figures of a grid: which figures a model has, how each is shown, and which way it is better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sparsify.parts import compute
from sparsify.reading.shifts import KINDS

NOT_MEASURES = frozenset(
    (
        "layers",
        "reliability",
        "class_accuracy",
        "passes",
        "forms",
        "calibration",
        "parity",
        "counts",
        "savings",
        "histogram",
        "shift",
        "coverage_at_risk",
        "risk_coverage",
        "figures",
        "figures_after",
    )
)
"""Keys of a model in ``metrics.json`` that are not figures of quality or cost."""
OWN_SCORE = "ood_score"


@dataclass(frozen=True)
class Measure:
    """How a figure is shown: its label, the format of a mean, and which way it is better: 1 for up, -1 for down, 0 for neither."""

    label: str
    style: str = ".4f"
    better: int = 0


MEASURES = {
    "accuracy": Measure("accuracy", better=1),
    "nll_before": Measure("NLL before", better=-1),
    "nll_after": Measure("NLL after", better=-1),
    "ece_before": Measure("ECE before", better=-1),
    "ece_after": Measure("ECE after", better=-1),
    "individual.eice": Measure("EICE before", better=-1),
    "individual.after.eice": Measure("EICE after", better=-1),
    "aurc_after": Measure("AURC after", ".5f", better=-1),
    "correctness_auroc_after": Measure("AUROC of correctness after", better=1),
    "prediction_set.coverage": Measure("coverage of sets"),
    "prediction_set.mean_size": Measure("size of sets", ".3f", better=-1),
    "accept.coverage": Measure("accepted", better=1),
    "accept.risk": Measure("wrong of the accepted", better=-1),
    "spikes.rate": Measure("spike rate"),
    "spikes.accumulates": Measure("additions for spikes", ",.0f", better=-1),
    "max_excess_gap": Measure("largest excess gap", better=-1),
    "churn": Measure("churn"),
    **{
        f"shift.{kind}.{key}": Measure(f"{label} under {kind}", better=better)
        for kind in KINDS
        for key, label, better in (("accuracy", "accuracy", 1), ("ece", "ECE", -1))
    },
    "auroc": Measure("AUROC", better=1),
    "mean_average_precision": Measure("mean average precision", better=1),
    "average_precision": Measure("average precision", better=1),
    "r2": Measure("R2", better=1),
    "rmse": Measure("RMSE", better=-1),
    "mae": Measure("MAE", better=-1),
    "mean_iou": Measure("mean IoU", better=1),
    "perplexity": Measure("perplexity", better=-1),
    "nll": Measure("NLL", better=-1),
    "ece": Measure("ECE", better=-1),
    "interval.coverage": Measure("coverage of intervals"),
    "interval.width": Measure("width of intervals", better=-1),
    "coverage": Measure("coverage", ".3f"),
    "evaluations": Measure("evaluations", ",.0f"),
    "steps": Measure("steps", ",.0f"),
}
"""The figures that all tables show, in order; figures of out-of-distribution inputs (`unknown`) are inserted before the costs."""
UNDER_SHIFT = ("accuracy", "ece")
"""Figures after calibration of which a grid has the mean over the severities of each kind of shift."""
COSTS = ("evaluations", "steps")
OWN = {"higher.": 1, "lower.": -1, "own.": 0}
"""Prefixes of the figures of a user's own task, and which way these are better."""
SHORT = (
    "accuracy", "nll_after", "ece_before", "ece_after", "mean_average_precision", "r2", "rmse", "mean_iou", "perplexity",
    "interval.coverage", "prediction_set.mean_size", "accept.coverage", "max_excess_gap", "churn",
)  # fmt: skip
"""The figures that fit into a terminal, besides AUROC, and evaluations if they differ."""
UNKNOWN = {"auroc": 1, "aupr": 1, "fpr": -1}
"""Words in the keys of figures of out-of-distribution inputs, and which way these are better."""


def figures(model: Mapping[str, Any]) -> dict[str, float]:
    """Return all figures of a model of ``metrics.json``, nested ones by dotted keys, and the cost of its training.

    ``evaluations`` are computed by `sparsify.parts.compute.evaluations`; for runs that did not count passes, there is one per step and one
    per probe. For each set of out-of-distribution inputs, the keys ``auroc.<set>`` and ``fpr.<set>`` repeat the figures of the score that
    judges the model: the ``ood_score`` of its method if there is one, or else the first score. Figures of a task have their own names.
    ``step_macs`` is the mean of the multiply-accumulates of a training step per sample, and ``step_bytes`` are the most bytes that a step
    held, and ``mean_density`` is the density of its masks as a mean over the steps (`sparsify.training.savings`).
    For a run with ``data.shift``, ``shift.<kind>.accuracy`` and ``shift.<kind>.ece`` are means over severities.
    Figures of a user's own task are called ``higher.<name>`` or ``lower.<name>``, whichever is better, or ``own.<name>`` if it is unknown.
    """
    found = dict(_leaves(model))
    for key, value in model.get("figures", {}).items():
        if value is not None:
            found[own_key(model, key)] = float(value)
    for name, row in (model.get("ood") or {}).items():
        judged = row["scores"].get(OWN_SCORE) or next(iter(row["scores"].values()))
        found |= {f"auroc.{name}": judged["auroc"], f"fpr.{name}": judged["fpr_at_95_tpr"]}
    for kind, steps in (model.get("shift") or {}).items():
        if kind in KINDS:
            found |= {
                f"shift.{kind}.{key}": sum(row["after"][key] for row in steps) / len(steps) for key in UNDER_SHIFT
            }
    counts = {key: float(value) for key, value in model["counts"].items()}
    pairs = counts["steps"] + counts.get("probes", 0.0)
    spent = compute.evaluations(counts.get("forwards", pairs), counts.get("backwards", pairs))
    if savings := model.get("savings"):
        counts |= {"step_macs": sum(savings["macs"].values()), "step_bytes": float(sum(savings["bytes_peak"].values()))}
        counts |= {"mean_density": savings["mean_density"]} if "mean_density" in savings else {}
    return {**found, **counts, "evaluations": spent}


def direction(model: Mapping[str, Any], figure: str) -> int:
    """Return which way a figure of a model of ``metrics.json`` is better: 1 for up, -1 for down, 0 if unknown."""
    return 0 if figure in model.get("undirected", ()) else -1 if figure in model["lower_is_better"] else 1


def own_key(model: Mapping[str, Any], figure: str) -> str:
    """Return the key of a task's figure in a grid: its name if that implies which way is better; otherwise with a prefix of `OWN`."""
    way = direction(model, figure)
    if figure in MEASURES and MEASURES[figure].better == way != 0:
        return figure
    return next(prefix for prefix, better in OWN.items() if better == way) + figure


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, float]]:
    for key, value in values.items():
        if key in NOT_MEASURES:
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{key}", float(value)


def unknown(key: str) -> bool:
    """Return whether a figure measures how well out-of-distribution inputs are recognised, by the score that judges the model."""
    return key.startswith(("auroc", "fpr"))


def measure(key: str) -> Measure:
    """Return how a figure is shown."""
    for prefix, way in OWN.items():
        if key.startswith(prefix):
            return Measure(key.removeprefix(prefix).replace("_", " "), better=way)
    better = next((way for word, way in UNKNOWN.items() if word in key.lower()), 0)
    label = key.replace("auroc", "AUROC").replace("fpr.", "FPR at 95 % TPR.").replace(".", " ").replace("_", " ")
    return MEASURES.get(key) or Measure(label, better=better)
