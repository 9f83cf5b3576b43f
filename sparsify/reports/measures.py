"""What a run measures of one model, as plain numbers for ``metrics.json``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsify.ir import Program
from sparsify.ir.sites import mostly_dense
from sparsify.parts import bootstrap, conformal, metrics, selective
from sparsify.parts.bootstrap import Figure
from sparsify.parts.ood_scores import scores
from sparsify.parts.trees import rows_of, tensors
from sparsify.passes import Pass, PassLog
from sparsify.tasks import Task

LEAST_RESAMPLES, MOST_DRAWN = 200, 10**9
"""Smallest number of draws for an interval, and how many numbers all draws may hold together: large outputs get fewer draws."""
LEAST = 1e-12
"""Smallest probability of which a score is computed, as `sparsify.parts.metrics.nll` clips them."""
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


def quality(before: Tensor, after: Tensor, labels: Tensor) -> dict[str, Any]:
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
        **_selective({when: selective.top_label(table, labels) for when, table in tables}),
    }


def _selective(answers: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Any]:
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


def calibrated(logits: Tensor, outputs: Mapping[str, Tensor]) -> Tensor:
    """Return the probabilities [N, K] that the head of a classifier computes; without such a head, the softmax of the logits [N, K]."""
    return outputs["probabilities"] if "probabilities" in outputs else logits.softmax(1)


def selective_differences(model: Tensor, dense: Tensor, labels: Tensor) -> dict[str, Any]:
    """Compute the figures of selective prediction of a model minus those of its baseline, with 95 % intervals by paired bootstrap.

    Args:
        model, dense: calibrated probabilities [N, K] of the test samples.
        labels: [N].

    Returns:
        Rows like those of `paired`, by figure; the figures are those after calibration in `quality`. There is a reason instead of an
        interval if a model has fewer than `LEAST_ANSWERS` wrong answers, or right ones.
    """
    pairs = [selective.top_label(table, labels) for table in (model, dense)]
    for kind, answers in (("wrong", [~right for _, right in pairs]), ("right", [right for _, right in pairs])):
        fewest = min(int(given.sum()) for given in answers)
        if fewest < LEAST_ANSWERS:
            reason = f"one of the models has {fewest} {kind} answers, and an interval needs {LEAST_ANSWERS}"
            return {f"{name}_after": {"figure": f"{name}_after", "reason": reason} for name in RESAMPLED}
    resamples = max(LEAST_RESAMPLES, min(bootstrap.RESAMPLES, DRAWN // len(labels)))
    once, found = torch.ones(1, len(labels), dtype=torch.float64), dict[str, Any]()
    for name, figure in RESAMPLED.items():
        ours, theirs = (figure(*pair) for pair in pairs)
        found[f"{name}_after"] = _difference(f"{name}_after", ours, theirs, once, resamples)
    return found


def _difference(name: str, ours: Figure, theirs: Figure, once: Tensor, resamples: int) -> dict[str, Any]:
    """Return a row of `paired`. ``once`` is the draw [1, N] that has each sample once."""
    difference = float(ours(once) - theirs(once))
    interval = bootstrap.bootstrap_difference(ours, theirs, once.shape[1], resamples=resamples)
    if interval is None or not math.isfinite(difference):
        return {"figure": name, "reason": "most draws of the samples do not define it"}
    return {"figure": name, "difference": difference, "interval": list(interval), "resamples": resamples}


def task_quality(task: Task, read: Any, outputs: Mapping[str, Tensor], targets: Any) -> dict[str, Any]:
    """Compute what a task measures of a model on the test set; for classification, all of `quality`.

    Args:
        task: of the run.
        read: what it reads of the outputs, [N, ...].
        outputs: all of the program, with ``probabilities``, or ``lower`` and ``upper``, where a head was attached that makes them.
        targets: [N, ...].

    Returns:
        ``figures`` by name, None where the samples define none; ``figures_after``, the same by calibrated probabilities, if there are
        some; ``headline``, the name of the first; ``lower_is_better``, names of some of them; ``undirected``, the names of those for
        which nobody said which way is better, if there are some; ``coverage`` and mean ``width`` of an interval.
    """
    if task.name == "classification":
        return quality(read.softmax(1), calibrated(read, outputs), targets)
    found = _figures(task, read, targets)
    lower, undirected = ([name for name in found if task.higher_is_better(name) is way] for way in (False, None))
    row: dict[str, Any] = {"figures": found, "headline": next(iter(found)), "lower_is_better": lower}
    if undirected:
        row["undirected"] = undirected
    if "probabilities" in outputs and task.link != "none":
        row["figures_after"] = _figures(task, _scores(task, outputs["probabilities"]), targets)
    if "lower" in outputs and task.output is not None:
        low, high, wanted = outputs["lower"], outputs["upper"], targets.double().reshape(outputs["lower"].shape)
        row["interval"] = {"coverage": conformal.coverage(wanted, low, high), "width": conformal.width(low, high)}
    return row


def _figures(task: Task, read: Any, targets: Any) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in task.figures(read, targets).items()}


def _scores(task: Task, probabilities: Tensor) -> Tensor:
    """Return the scores whose softmax or sigmoid, as the task says, are these probabilities."""
    table = probabilities.double()
    return torch.logit(table, eps=LEAST) if task.link == "sigmoid" else table.clamp_min(LEAST).log()


def paired(task: Task, row: Mapping[str, Any], model: Any, dense: Any, targets: Any) -> dict[str, Any]:
    """Compute the headline figure of a model minus that of its baseline, with a 95 % interval by paired bootstrap over test samples.

    Args:
        task: of the run, other than classification, which counts decisions.
        row: of the model, from `task_quality`.
        model, dense: what the task reads of the outputs of each, [N, ...].
        targets: [N, ...].

    Returns:
        ``figure``, ``difference``, ``interval`` and ``resamples``; where there is no such interval, ``figure`` and ``reason``.
    """
    name = row["headline"]
    if any(bool((v.isnan() | (v == torch.inf)).any()) for v in (*tensors(model), *tensors(dense))):
        return {"figure": name, "reason": "outputs are NaN or infinite"}
    ours, theirs = task.resampled(model, targets), task.resampled(dense, targets)
    if ours is None or theirs is None:
        return {"figure": name, "reason": f"task {task.name!r} cannot compute it of some of the samples"}
    samples, numbers = rows_of(targets), sum(value.numel() for value in tensors(model))
    resamples = max(LEAST_RESAMPLES, min(task.resamples, MOST_DRAWN // max(numbers, 1)))
    once = torch.ones(1, samples, dtype=torch.float64)
    value = row["figures"][name]
    if not (value is not None and math.isclose(float(ours(once)), value, rel_tol=1e-4, abs_tol=1e-6)):
        return {"figure": name, "reason": "it is another one when it is computed again"}
    return _difference(name, ours, theirs, once, resamples)


def ood_quality(inside: Mapping[str, Tensor], outside: Mapping[str, Tensor]) -> dict[str, Any]:
    """Measure how well each score tells test inputs from out-of-distribution ones.

    Args:
        inside: outputs of the program on the test set, at least ``logits`` [N, K].
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
    return {"samples": len(outside["logits"]), "scores": found}


def _histogram(inside: Tensor, outside: Tensor) -> dict[str, Any]:
    """Return counts in `BINS` bins of equal width over all of both."""
    low, high = (float(f(torch.cat([inside, outside]))) for f in (torch.amin, torch.amax))
    counts = [torch.histc(x, BINS, low, high).long().tolist() if high > low else [len(x)] for x in (inside, outside)]
    return {"low": low, "high": high, "inside": counts[0], "outside": counts[1]}


def sizes(program: Program) -> dict[str, Any]:
    """Return weights and multiplications of a trained program; one without masks counts as wholly active.

    Returns:
        ``params`` and ``model_density`` of all weights, ``maskable``, ``active`` and ``density`` of those with a mask (without masks: of
        those that may have one), ``macs``, ``unknown`` operators that may multiply and are not in them, and ``mostly_dense``: a
        sentence where less than half of the weights can be masked, or None.
    """
    costs = program.costs()
    every = sum(math.prod(site.shape) for site in program.maskable() if site.possible)
    return {
        "params": costs.params,
        "model_density": costs.model_density,
        "unknown": list(costs.unknown),
        "mostly_dense": mostly_dense(program),
        "maskable": costs.maskable or every,
        "active": costs.active if costs.maskable else every,
        "density": costs.density,
        "macs": costs.macs_active,
    }


def layers(
    program: Program, coverage: Mapping[str, float] | None = None, forms: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """One row per weight of the program: its counts, why it has no mask where it has none, and the share of it that was ever active.

    Args:
        program: trained.
        coverage: by masked weight; of a run that followed it.
        forms: by masked weight, how training stored it; None for a program that was not trained here.
    """
    masks, rows = program.masks(), []
    for site in program.maskable():
        count = math.prod(site.shape)
        active = int(masks[site.name].count_nonzero()) if site.name in masks else None
        rows.append(
            {
                "name": site.name,
                "shape": list(site.shape),
                "maskable": count,
                "active": active,
                "coverage": (coverage or {}).get(site.name),
                "training": (forms or {}).get(site.name),
                "macs": site.macs,
                "macs_active": site.macs if active is None else site.macs * active // count,
                "skip": site.skip or (None if site.name in masks or not masks else "kept dense"),
            }
        )
    return rows


def covered(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the share of all positions of the `layers` with a known coverage that was ever active; None where none is known."""
    known = [row for row in rows if row["coverage"] is not None]
    return (
        sum(row["coverage"] * row["maskable"] for row in known) / sum(row["maskable"] for row in known)
        if known
        else None
    )


def pass_rows(record: Sequence[tuple[Pass, PassLog]]) -> list[dict[str, Any]]:
    """Return what `sparsify.passes.recording` holds, as it goes into ``metrics.json``."""
    return [
        {"pass": str(step), "changed": list(log.changed), "left_alone": [list(item) for item in log.skipped]}
        for step, log in record
    ]
