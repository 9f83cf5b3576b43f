"""The form of what is measured of out-of-distribution inputs, in ``metrics.json``."""

from __future__ import annotations

from typing import Annotated

from sparsify.reports.latency_form import Few, Form


class Histogram(Form):
    """Counts of a score in bins of equal width from ``low`` to ``high``, for test inputs and for out-of-distribution inputs."""

    low: float
    high: float
    inside: Annotated[list[int], Few]
    outside: Annotated[list[int], Few]


class OodScore(Form):
    """How well a score separates test inputs (positive) from out-of-distribution inputs; FPR at 95 % TPR in both conventions."""

    auroc: float
    aupr_in: float
    aupr_out: float
    fpr_at_95_tpr: float
    fpr_at_95_tpr_outside: float
    histogram: Histogram


class Ood(Form):
    """A set of out-of-distribution inputs; scores by name."""

    samples: int
    scores: dict[str, OodScore]


class OodChoice(Form):
    """The score that was chosen on validation samples, and the AUROC of all by their heads."""

    chosen: str
    auroc: dict[str, float]
    outliers: list[str]
