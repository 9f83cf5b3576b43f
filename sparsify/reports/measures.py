"""What a run measures of one model, as plain numbers for ``metrics.json``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sparsify.ir import Program
from sparsify.parts import metrics
from sparsify.passes import Pass, PassLog


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
        **{f"signed_gap_{when}": metrics.signed_gap(table, labels) for when, table in tables},
        "adaptive_ece": metrics.adaptive_ece(after, labels),
        "classwise_ece": metrics.classwise_ece(after, labels),
        "reliability": {
            when: [dataclasses.asdict(row) for row in metrics.reliability(table, labels)] for when, table in tables
        },
    }


def sizes(program: Program) -> dict[str, Any]:
    """Weights and multiplications of a trained program; one without masks counts as wholly active."""
    costs = program.costs()
    every = sum(math.prod(site.shape) for site in program.maskable())
    return {
        "maskable": costs.maskable or every,
        "active": costs.active if costs.maskable else every,
        "density": costs.density,
        "macs": costs.macs_active,
    }


def layers(program: Program, coverage: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
    """One row a weight of the program: its counts, why it has no mask where it has none, and the share of it that was ever active.

    Args:
        program: trained.
        coverage: by masked weight; of a run that followed it.
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
                "macs": site.macs,
                "macs_active": site.macs if active is None else site.macs * active // count,
                "skip": site.skip or (None if site.name in masks or not masks else "kept dense"),
            }
        )
    return rows


def covered(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The share of all positions of the `layers` with a known coverage that was ever active; None where none is known."""
    known = [row for row in rows if row["coverage"] is not None]
    return (
        sum(row["coverage"] * row["maskable"] for row in known) / sum(row["maskable"] for row in known)
        if known
        else None
    )


def pass_rows(record: Sequence[tuple[Pass, PassLog]]) -> list[dict[str, Any]]:
    """What `sparsify.passes.recording` holds, as it goes into ``metrics.json``."""
    return [
        {"pass": str(step), "changed": list(log.changed), "left_alone": [list(item) for item in log.skipped]}
        for step, log in record
    ]
