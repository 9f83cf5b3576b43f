"""The form of what ``metrics.json`` holds of prediction sets and of accepted answers; models without such outputs lack it."""

from __future__ import annotations

from sparsify.reports.latency_form import Form, Pair


class OfSize(Form):
    """How many sets have a size, and how many of them hold the right class."""

    size: int
    samples: int
    coverage: float


class SetFigures(Form):
    """`sparsify.figures.sets.set_figures`."""

    coverage: float
    interval: Pair
    mean_size: float
    median_size: float
    singletons: float
    empty: float
    sizes: list[OfSize]
    class_coverage: list[float | None]


class AcceptedFigures(Form):
    """`sparsify.figures.sets.accepted_figures`; the risk is None if nothing is accepted."""

    samples: int
    coverage: float
    coverage_interval: Pair
    risk: float | None
    risk_interval: Pair | None
    risk_of_all: float


class BesideProbabilities(Form):
    """What is measured of outputs that follow the probabilities."""

    prediction_set: SetFigures | None = None
    accept: AcceptedFigures | None = None
