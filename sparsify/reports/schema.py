"""The form of ``metrics.json``, ``latency.json`` and a row of ``history.jsonl``: what a report reads, checked before it is read.

Further keys are allowed, so that a later version may write more; a missing key or a value of another type is an error that names it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from sparsify.errors import ReportError
from sparsify.reports.input_form import Input, SeveralInputs
from sparsify.reports.latency_form import Form, Pair, Two
from sparsify.reports.latency_form import LatencyFile as LatencyFile

Few = Field(max_length=4000)
"""Of what is drawn: each is a bar or a bin of a plot."""


class Bin(Form):
    """One bin of a reliability diagram."""

    count: int
    accuracy: float
    confidence: float


class Diagrams(Form):
    """Bins on the test set, without and with the calibration head."""

    before: Annotated[list[Bin], Few]
    after: Annotated[list[Bin], Few]


class Layer(Form):
    """A weight; ``active`` and ``coverage`` are None where it has no mask."""

    name: str
    shape: list[int]
    maskable: int
    active: int | None
    coverage: float | None
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


class Calibration(Form):
    """How the head was fitted, and its effect on the samples it was fitted on, None of a head that makes no probabilities; ``note``: why it
    was not, or is a rough one."""

    kind: str
    samples: int
    temperature: float | None
    note: str | None = None
    nll_before: float | None
    nll_after: float | None
    ece_before: float | None
    ece_after: float | None


class Parity(Form):
    """How the ONNX file agrees with the program; ``uncompared`` says what could not be compared."""

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
    """A pass that was applied; ``left_alone`` holds (where, why)."""

    changed: list[str]
    name: Annotated[str, Field(alias="pass")]
    left_alone: list[Annotated[list[str], Two]]


class Histogram(Form):
    """Counts of a score in bins of equal width from ``low`` to ``high``: test inputs, and out-of-distribution ones."""

    low: float
    high: float
    inside: Annotated[list[int], Few]
    outside: Annotated[list[int], Few]


class OodScore(Form):
    """How well a score tells test inputs (positive) from out-of-distribution ones; FPR at 95 % TPR by both conventions."""

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


class Fp32Figures(Form):
    """Figures of the program on the test samples."""

    accuracy: float
    nll_after: float
    brier_after: float
    ece_before: float
    ece_after: float


class HeldOut(Form):
    """The int8 file against the program on held-out samples."""

    samples: int
    agreed: int
    largest_error: float


class Int8(Form):
    """The int8 file of a model on the test samples; ``layers`` has the form of each weight."""

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
    """Who a model learned from, and its accuracy on the test samples."""

    name: str
    accuracy: float


class _Trained(Form):
    """What is known of a model of any task."""

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


class Part(_Trained):
    """One model of a run of classification; ``ood`` where such inputs were given.

    Of the two calibrations, accuracy is that of the logits, adaptive and class-wise ECE are after it.
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
    ood_threshold: float | None = None
    int8: Int8 | None = None
    teacher: Teacher | None = None


class TaskCalibration(Form):
    """How the head of another task was fitted; an interval has a ``level`` and nothing of decisions."""

    kind: str
    samples: int
    temperature: float | None
    note: str | None = None
    nll_before: float | None
    nll_after: float | None
    ece_before: float | None
    ece_after: float | None
    level: float | None = None


class TaskFigures(Form):
    """Figures of a program on the test samples, as trained and by calibrated probabilities; None where the samples define none."""

    figures: dict[str, float | None]
    figures_after: dict[str, float | None] | None = None
    interval: dict[str, float] | None = None


class TaskInt8(TaskFigures):
    """The int8 file of a model of another task; ``agreement`` is of decisions, None where nothing is decided."""

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
    """Who a model of another task learned from, and its figures on the test samples."""

    name: str
    figures: Annotated[dict[str, float | None], Field(min_length=1)]


class TaskPart(_Trained):
    """One model of a run of another task.

    ``headline`` names one of the ``figures``, which are None where the samples define none; ``figures_after`` are the same by calibrated
    probabilities. ``interval`` has the ``coverage`` and mean ``width`` of intervals on the test set. ``shortfall`` says why the model is
    of no use.
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
    """Decisions of the model against those of the baseline."""

    lost: int
    gained: int
    changed: int
    class_lost: list[int]
    class_gained: list[int]
    class_samples: list[int]


class Data(Form):
    """The data of the run; ``scale`` has ``mean`` and ``deviation`` of training targets that a regression standardised."""

    name: str
    task: str = "classification"
    classes: int
    class_names: list[str] | None = None
    preparation: dict[str, Any] = Field(default_factory=dict)
    scale: dict[str, list[float]] | None = None
    fingerprint: str
    samples: dict[str, int]


class Missing(Form):
    """A file that could not be made, and how to make it."""

    file: str
    reason: str
    advice: str


class Metrics(Form):
    """``metrics.json``; ``dense`` and ``flips`` where there is a baseline, ``without_baseline`` why there can be none, ``missing`` where
    something failed after training."""

    recipe_hash: str
    seed: int
    storage: str
    versions: dict[str, str]
    data: Data
    model: Part
    dense: Part | None = None
    flips: Flips | None = None
    without_baseline: str | None = None
    input: Input | None = None
    inputs: list[SeveralInputs] | None = None
    outputs: Annotated[list[str], Field(min_length=1)] | None = None
    missing: list[Missing] = Field(default_factory=list)


class Paired(Form):
    """The headline figure of the model less that of the baseline, with its 95 % interval over draws of the test samples; or why not."""

    figure: str
    difference: float | None = None
    interval: Pair | None = None
    resamples: int | None = None
    reason: str = ""


class TaskMetrics(Metrics):
    """``metrics.json`` of another task than classification; ``paired`` where there is a baseline."""

    paired: Paired | None = None

    model: TaskPart  # pyright: ignore[reportIncompatibleVariableOverride]
    dense: TaskPart | None = None  # pyright: ignore[reportIncompatibleVariableOverride]


class Epoch(Form):
    """A row of ``history.jsonl``; coverage and turnover by weight, where there are masks; ``readings`` are figures of the method's own."""

    step: int
    loss: float
    val_loss: float
    val_accuracy: float | None = None
    coverage: dict[str, float] | None = None
    turnover: dict[str, float] | None = None
    readings: dict[str, float] = Field(default_factory=dict)


def check(form: type[Form], value: Any, path: Path) -> None:
    """Raise unless ``value``, read from ``path``, has the form.

    Raises:
        ReportError: Naming the file and the first keys that do not fit.
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
