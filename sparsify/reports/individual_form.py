"""The form of individual calibration in ``metrics.json``, and its rows in the report. Runs of earlier versions have none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsify.reports.headline import parts
from sparsify.reports.latency_form import Form

Rows = list[tuple[str, ...]]


class IndividualFigures(Form):
    """The expected individual calibration error of some samples, and the mean error with its sign."""

    samples: int
    eice: float
    signed: float


class IndividualAfter(IndividualFigures):
    """The figures after calibration, overall and by class."""

    classes: list[IndividualFigures | None]


class IndividualCalibration(Form):
    """The figures of test samples, overall and by class, from intervals by ``influences`` held-out samples; or a reason why not.

    They are of the model as trained; ``after`` has those after its calibration head. Runs of earlier versions have no ``after``.
    """

    influences: int = 0
    samples: int | None = None
    eice: float | None = None
    signed: float | None = None
    classes: list[IndividualFigures | None] | None = None
    after: IndividualAfter | None = None
    reason: str = ""


def individual_rows(report: Mapping[str, Any]) -> Rows:
    """Return the rows of individual calibration for the table of a report; none if a model of the run has no such figures."""
    found = [report[name].get("individual") or {} for name in parts(report)]
    if not all("eice" in row for row in found):
        return []
    tables = {"before": found, "after": [row.get("after") for row in found]}
    whens = [when for when, rows in tables.items() if any(rows)]
    rows: Rows = []
    for label, show in (
        ("EICE", lambda row: f"{row['eice']:.4f}"),
        ("confidence less centre of interval", lambda row: f"{row['signed']:+.4f}"),
        ("largest EICE of a class", lambda row: _largest(row["classes"])),
    ):
        rows += [(f"{label}, {when}", *(show(row) if row else "" for row in tables[when])) for when in whens]
    numbers = [f"{row['samples']:,} test samples, intervals by {row['influences']:,} held out" for row in found]
    return [*rows, ("EICE is of", *numbers)]


def _largest(classes: list[Mapping[str, Any] | None]) -> str:
    number, row = max(((k, row) for k, row in enumerate(classes) if row), key=lambda item: item[1]["eice"])
    return f"{row['eice']:.4f} (class {number}, {row['samples']:,} samples)"
