"""What a run measures of one model, as plain numbers for ``metrics.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsify.figures import regression
from sparsify.figures.bootstrap import measured
from sparsify.figures.classifier import difference_row, quality
from sparsify.figures.metrics import LEAST
from sparsify.ir import Program
from sparsify.ir.sites import mostly_dense
from sparsify.parts.trees import rows_of, tensors
from sparsify.passes import Pass, PassLog
from sparsify.reports.sets import beside_probabilities
from sparsify.tasks import Task

LEAST_RESAMPLES, MOST_DRAWN = 200, 10**9
"""Smallest number of draws for an interval, and how many numbers all draws may hold together: large outputs get fewer draws."""


def calibrated(logits: Tensor, outputs: Mapping[str, Tensor]) -> Tensor:
    """Return the probabilities [N, K] that the head of a classifier computes; without such a head, the softmax of the logits [N, K]."""
    return outputs["probabilities"] if "probabilities" in outputs else logits.softmax(1)


def task_quality(task: Task, read: Any, outputs: Mapping[str, Tensor], targets: Any) -> dict[str, Any]:
    """Compute what a task measures of a model on the test set; for classification, all of `quality` and `beside_probabilities`.

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
        after = calibrated(read, outputs).double()
        return quality(read.softmax(1).double(), after, targets) | beside_probabilities(outputs, after, targets)
    found = _figures(task, read, targets)
    lower, undirected = ([name for name in found if task.higher_is_better(name) is way] for way in (False, None))
    row: dict[str, Any] = {"figures": found, "headline": next(iter(found)), "lower_is_better": lower}
    if undirected:
        row["undirected"] = undirected
    if "probabilities" in outputs and task.link != "none":
        row["figures_after"] = _figures(task, _scores(task, outputs["probabilities"]), targets)
    if "lower" in outputs and task.output is not None:
        low, high, wanted = outputs["lower"], outputs["upper"], targets.double().reshape(outputs["lower"].shape)
        row["interval"] = {"coverage": regression.coverage(wanted, low, high), "width": regression.width(low, high)}
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
    value = row["figures"][name]
    if not (value is not None and math.isclose(measured(ours, samples), value, rel_tol=1e-4, abs_tol=1e-6)):
        return {"figure": name, "reason": "it is another one when it is computed again"}
    return difference_row(name, ours, theirs, samples, resamples)


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
