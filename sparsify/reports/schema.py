"""Schemas of ``metrics.json``, ``latency.json``, ``answers.json`` and a row of ``history.jsonl``, checked before a report reads them.

Additional keys are allowed, so that later versions may write more. A missing key or a value of another type is an error that names the key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from sparsify.errors import ReportError
from sparsify.reports.damage_form import Answers as Answers
from sparsify.reports.damage_form import Damage
from sparsify.reports.individual_form import IndividualCalibration
from sparsify.reports.input_form import Input, SeveralInputs
from sparsify.reports.latency_form import Few, Form, Two
from sparsify.reports.latency_form import LatencyFile as LatencyFile
from sparsify.reports.ood_form import Ood, OodChoice
from sparsify.reports.savings_form import Savings
from sparsify.reports.selective_form import Paired, SelectiveFigures
from sparsify.reports.sets_form import BesideProbabilities
from sparsify.reports.shift_form import Shift
from sparsify.reports.spikes_form import Spikes


class Bin(Form):
    """One bin of a reliability diagram."""

    count: int
    accuracy: float
    confidence: float


class Diagrams(Form):
    """Bins for the test set, without and with the calibration head."""

    before: Annotated[list[Bin], Few]
    after: Annotated[list[Bin], Few]


class Layer(Form):
    """A weight; ``active`` and ``coverage`` are None if it has no mask."""

    name: str
    shape: list[int]
    maskable: int
    active: int | None
    coverage: float | None
    training: str | None = None
    macs: int
    macs_active: int
    skip: str | None

    @model_validator(mode="after")
    def _counts(self) -> Layer:
        if self.active is not None and not (0 <= self.active <= self.maskable and self.maskable >= 1):
            raise ValueError(
                f"active should be between 0 and maskable, which is at least 1; found {self.active} of {self.maskable}"
            )
        return self


class HeadFit(Form):
    """How a head that does not calibrate was fitted to ``samples`` held-out or training samples, what it found and was asked for."""

    head: str
    outputs: list[str]
    samples: int
    of: str
    figures: dict[str, float | None] = Field(default_factory=dict)
    note: str | None = None
    values: dict[str, float] = Field(default_factory=dict)


class Calibration(Form):
    """How the head was fitted, and its figures on the samples of the fit, which are None if it computes no probabilities.

    ``note`` says why the head was not fitted, or why the fit is rough.
    """

    kind: str
    samples: int
    temperature: float | None
    note: str | None = None
    nll_before: float | None
    nll_after: float | None
    ece_before: float | None
    ece_after: float | None
    heads: list[HeadFit] = Field(default_factory=list)
    figures: dict[str, float | None] = Field(default_factory=dict)


class Parity(Form):
    """How well the ONNX file agrees with the program; ``uncompared`` lists what could not be compared."""

    batches: list[int]
    samples: int | None = None
    units: int | None = None
    largest_error: float
    tolerance: float
    share: float | None = None
    decisions: int
    ties: int | None = None
    uncompared: list[str] = Field(default_factory=list)


class PassRow(Form):
    """A pass that was applied; ``left_alone`` holds pairs of a place and the reason."""

    changed: list[str]
    name: Annotated[str, Field(alias="pass")]
    left_alone: list[Annotated[list[str], Two]]


class Fp32Figures(BesideProbabilities):
    """Figures of the program on the test samples."""

    accuracy: float
    nll_after: float
    brier_after: float
    ece_before: float
    ece_after: float


class HeldOut(Form):
    """Comparison of the int8 file with the program on held-out samples."""

    samples: int
    agreed: int
    largest_error: float


class Int8(BesideProbabilities):
    """Figures of the int8 file of a model on the test samples; ``layers`` has the form of each weight."""

    accuracy: float
    accuracy_after: float
    nll_before: float
    nll_after: float
    brier_before: float
    brier_after: float
    ece_before: float
    ece_after: float
    adaptive_ece: float
    classwise_ece: float
    fp32: Fp32Figures
    bytes: int
    form: str
    layers: dict[str, str]
    batch: int
    threads: int
    agreement: float
    held_out: HeldOut
    head: str


class Teacher(Form):
    """The teacher of a model, and its accuracy on the test samples."""

    name: str
    accuracy: float


class _Trained(Form):
    """Entries of a model that do not depend on the task."""

    method: str
    bytes: int
    maskable: int
    nonzeros: int
    density: float
    params: int
    model_density: float
    unknown: list[str]
    mostly_dense: str | None
    coverage: float | None
    macs: int
    layers: Annotated[list[Layer], Few]
    parity: Parity
    passes: list[PassRow]
    forms: dict[str, str]
    counts: dict[str, int]
    schedule: dict[str, int] = Field(default_factory=dict)
    savings: Savings | None = None
    spikes: Spikes | None = None


class Part(_Trained, SelectiveFigures, BesideProbabilities):
    """A model of a classification run; ``ood`` is filled if out-of-distribution inputs were given.

    ``accuracy`` is computed from the logits; adaptive and class-wise ECE are computed after calibration.
    """

    accuracy: float
    accuracy_after: float
    class_accuracy: list[float | None]
    nll_before: float
    nll_after: float
    brier_before: float
    brier_after: float
    ece_before: float
    ece_after: float
    adaptive_ece: float
    classwise_ece: float
    signed_gap_before: float
    signed_gap_after: float
    reliability: Diagrams
    calibration: Calibration
    ood: dict[str, Ood] = Field(default_factory=dict)
    ood_choice: OodChoice | None = None
    ood_threshold: float | None = None
    int8: Int8 | None = None
    teacher: Teacher | None = None
    individual: IndividualCalibration | None = None
    shift: Shift | None = None


class TaskCalibration(Form):
    """How the head of another task was fitted; an interval has a ``level`` instead of figures of decisions."""

    kind: str
    samples: int
    temperature: float | None
    note: str | None = None
    nll_before: float | None
    nll_after: float | None
    ece_before: float | None
    ece_after: float | None
    level: float | None = None
    figures: dict[str, float | None] = Field(default_factory=dict)


class TaskFigures(Form):
    """Figures of a program on the test samples, as trained and by calibrated probabilities; None if the samples do not define them."""

    figures: dict[str, float | None]
    figures_after: dict[str, float | None] | None = None
    interval: dict[str, float] | None = None


class TaskInt8(TaskFigures):
    """The int8 file of a model of another task; ``agreement`` is the share of equal decisions, None if the task makes none."""

    fp32: TaskFigures
    bytes: int
    form: str
    layers: dict[str, str]
    batch: int
    threads: int
    headline: str
    agreement: float | None
    held_out: HeldOut
    head: str


class TaskTeacher(Form):
    """The teacher of a model of another task, and its figures on the test samples."""

    name: str
    figures: Annotated[dict[str, float | None], Field(min_length=1)]


class TaskPart(_Trained):
    """One model of a run of another task.

    ``headline`` names one of the ``figures``, which are None if the samples do not define them; ``figures_after`` are the same figures by
    calibrated probabilities. ``interval`` has the ``coverage`` and mean ``width`` of intervals on the test set. ``shortfall`` says why the
    model is of no use.
    """

    figures: Annotated[dict[str, float | None], Field(min_length=1)]
    figures_after: dict[str, float | None] | None = None
    headline: str
    lower_is_better: list[str]
    undirected: list[str] = Field(default_factory=list)
    calibration: TaskCalibration | None
    interval: dict[str, float] | None = None
    shortfall: str | None = None
    int8: TaskInt8 | None = None
    teacher: TaskTeacher | None = None


class Flips(Form):
    """How decisions of the model differ from those of the baseline."""

    lost: int
    gained: int
    changed: int
    class_lost: list[int]
    class_gained: list[int]
    class_samples: list[int]


class Data(Form):
    """The data of the run; ``scale`` has ``mean`` and ``deviation`` of the training targets, if a regression standardised them."""

    name: str
    task: str = "classification"
    classes: int
    class_names: list[str] | None = None
    preparation: dict[str, Any] = Field(default_factory=dict)
    scale: dict[str, list[float]] | None = None
    fingerprint: str
    samples: dict[str, int]


class Missing(Form):
    """A file that could not be written, why, and how to make it."""

    file: str
    reason: str
    advice: str


class Metrics(Form):
    """``metrics.json``. ``dense`` and ``flips`` exist if there is a baseline; ``without_baseline`` says why there can be none.

    ``differences`` has figures of selective prediction, by key, against the baseline; ``damage`` what classes and samples lose beside it.
    ``missing`` lists what failed after training.
    """

    recipe_hash: str
    seed: int
    storage: str
    versions: dict[str, str]
    data: Data
    model: Part
    dense: Part | None = None
    flips: Flips | None = None
    differences: dict[str, Paired] = Field(default_factory=dict)
    damage: Damage | None = None
    without_baseline: str | None = None
    input: Input | None = None
    inputs: list[SeveralInputs] | None = None
    outputs: Annotated[list[str], Field(min_length=1)] | None = None
    missing: list[Missing] = Field(default_factory=list)


class TaskMetrics(Metrics):
    """``metrics.json`` of a task other than classification; ``paired`` exists if there is a baseline: the headline figure against it."""

    paired: Paired | None = None

    model: TaskPart  # pyright: ignore[reportIncompatibleVariableOverride]
    dense: TaskPart | None = None  # pyright: ignore[reportIncompatibleVariableOverride]


class Epoch(Form):
    """A row of ``history.jsonl``; coverage and turnover by weight if there are masks; ``readings`` are the method's own figures.

    What is NaN or infinite in a diverged model is None.
    """

    step: int
    loss: float
    val_loss: float | None
    val_accuracy: float | None = None
    coverage: dict[str, float] | None = None
    turnover: dict[str, float] | None = None
    readings: dict[str, float | None] = Field(default_factory=dict)


def check(form: type[Form], value: Any, path: Path) -> None:
    """Check ``value``, which was read from ``path``, against a schema.

    Raises:
        ReportError: If it does not fit; the message names the file and the first keys that do not fit.
    """
    data = value.get("data") if form is Metrics and isinstance(value, dict) else None
    if isinstance(data, dict) and data.get("task", "classification") != "classification":
        form = TaskMetrics
    try:
        TypeAdapter(form).validate_python(value)
    except ValidationError as error:
        found = error.errors()
        shown = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'content'}: {e['msg'].lower()}" for e in found[:3])
        rest = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise ReportError(
            f"{path} is not what a run of this version leaves: {shown}{rest}. It is damaged or of another version; run again with "
            f"--overwrite."
        ) from error
