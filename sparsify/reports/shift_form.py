"""The form of what ``metrics.json`` holds of a classifier under shift; runs that were not asked for it lack it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sparsify.reports.latency_form import Form


class Judged(Form):
    """Accuracy, mean confidence and ECE by one table of probabilities."""

    accuracy: float
    confidence: float
    ece: float


class ShiftFigures(Form):
    """`sparsify.figures.shift.shift_figures`."""

    before: Judged
    after: Judged
    ood_score: float | None = None
    set_coverage: float | None = None
    set_size: float | None = None
    accepted: float | None = None
    accepted_risk: float | None = None


Five = Annotated[list[ShiftFigures], Field(min_length=5, max_length=5)]


class Shift(Form):
    """Figures of the test samples as they are, and by severity of each kind of shift."""

    unchanged: ShiftFigures
    noise: Five
    blur: Five
    brightness: Five
