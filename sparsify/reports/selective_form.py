"""The form of what ``metrics.json`` holds of selective prediction. Runs of earlier versions lack all of it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from sparsify.reports.latency_form import Form, Pair

Points = Annotated[list[float], Field(min_length=1, max_length=4000)]


class Curve(Form):
    """Points of a risk-coverage curve, by ascending coverage."""

    coverage: Points
    risk: Points

    @model_validator(mode="after")
    def _pairs(self) -> Curve:
        if len(self.coverage) != len(self.risk):
            raise ValueError(f"{len(self.coverage)} values of coverage, but {len(self.risk)} of risk")
        return self


class Curves(Form):
    """Points without and with the calibration head."""

    before: Curve
    after: Curve


class Answered(Form):
    """The largest selection of which at most the share ``at_most`` is wrong; ``threshold`` is None if there is none."""

    at_most: float
    samples: int
    coverage: float
    risk: float
    threshold: float | None


class AnsweredAtRisk(Form):
    """Selections without and with the calibration head."""

    before: list[Answered]
    after: list[Answered]


class HeldOut(Form):
    """AURC on held-out samples by the highest probability, and by logits divided by each norm."""

    probability: float
    norms: dict[str, float]


class ChosenConfidence(Form):
    """The confidence that held-out samples chose: logits divided by their p-norm; ``p`` is None for the highest probability."""

    p: int | None
    held_out: HeldOut
    aurc: float
    correctness_auroc: float | None


class SelectiveFigures(Form):
    """Figures of a classifier that take its confidence as an order, or are debiased.

    The AUROC of correctness is None if all answers are right, or all wrong.
    """

    mce_before: float | None = None
    mce_after: float | None = None
    debiased_l2_before: float | None = None
    debiased_l2_after: float | None = None
    aurc_before: float | None = None
    aurc_after: float | None = None
    excess_aurc_before: float | None = None
    excess_aurc_after: float | None = None
    correctness_auroc_before: float | None = None
    correctness_auroc_after: float | None = None
    coverage_at_risk: AnsweredAtRisk | None = None
    risk_coverage: Curves | None = None
    chosen_confidence: ChosenConfidence | None = None


class Paired(Form):
    """A figure of the model minus that of the baseline, with its 95 % interval over draws of test samples, or a reason."""

    figure: str
    difference: float | None = None
    interval: Pair | None = None
    resamples: int | None = None
    reason: str = ""
