"""Fit a program's calibration head. Only the head's buffers change.

Fitting never fails a run: where the held-out samples do not determine the head, it stays at the identity, and the log says why.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.errors import TrainingError
from sparsify.ir import Program
from sparsify.ir.evaluation import outputs_over
from sparsify.parts import conformal, metrics
from sparsify.parts.calibrators import NotIdentifiableError, fit_temperature, fit_vector_scaling
from sparsify.parts.samples import Samples
from sparsify.tasks import Task, build
from sparsify.tasks.base import judged

FEW = 5
"""Held-out samples per class below which a fit is called rough."""
NOT_FITTED = "not fitted, so the probabilities are those of the model as trained"


@dataclass(frozen=True)
class CalibrationLog:
    """What was fitted, on how many held-out samples, and what it did to them.

    Attributes:
        kind: ``temperature``, ``vector``, ``label-temperature`` or ``interval``.
        nll_before, nll_after, ece_before, ece_after: of the decisions on these samples; None of an interval.
        temperature: of that kind; 1.0 where it could not be fitted.
        note: why the head stayed at the identity, or why the fit deserves little trust; None: neither.
        level: the share of new samples that an interval should hold; None of the other kinds.
    """

    kind: str
    samples: int
    nll_before: float | None
    nll_after: float | None
    ece_before: float | None
    ece_after: float | None
    temperature: float | None
    note: str | None = None
    level: float | None = None

    def to_dict(self) -> dict[str, object]:
        """JSON-able."""
        found = dataclasses.asdict(self)
        return found if self.level is not None else {key: value for key, value in found.items() if key != "level"}


def fit(
    program: Program,
    held_out: Samples,
    *,
    task: str | Task = "classification",
    level: float = 0.9,
    batch_size: int = 256,
) -> CalibrationLog:
    """Fit the head that `attach-calibration-head` inserted.

    Args:
        program: with an output ``probabilities``, or ``lower`` and ``upper``.
        held_out: neither training nor test data.
        task: what the outputs mean, as for the pass.
        level: the share of new samples that an interval should hold, in (0, 1).
        batch_size: of the evaluation.

    Returns:
        What was done. A head that the samples do not determine is the identity then (temperature 1; scale 1 and bias 0), with a note.

    Raises:
        TrainingError: If there is no head, or the program's outputs hold NaN or +infinity.
        TaskError: If there is no task of that name.
    """
    meaning, kind = build(task), kind_of(program)
    if kind is None:
        raise TrainingError(f"{program.name!r} has no calibration head. Apply attach-calibration-head first.")
    assert meaning.output is not None, "a task with heads reads one output"
    found = outputs_over(program, held_out, names=(meaning.output,), batch_size=batch_size)[meaning.output].double()
    if bool((found.isnan() | (found == torch.inf)).any()):
        what = "logits" if meaning.output == "logits" else "predictions"
        raise TrainingError(
            f"{program.name!r} returns NaN or infinite {what} for held-out samples, so there is nothing to calibrate. Lower lr, or check "
            f"the batch norms' running statistics."
        )
    if kind == "interval":
        return _interval(program, found, held_out.targets.reshape(found.shape).double().cpu(), level)
    if kind == "label-temperature":
        fitted, note = _by_label(found, held_out.targets)
        after = found / fitted["temperature"]
        temperature = None
    else:
        scores, answers = judged(meaning, found, held_out.targets.cpu())
        fitted, note = _fitted(kind, scores, answers)
        plain = kind == "temperature"
        after = found / fitted["temperature"] if plain else found * fitted["scale"] + fitted["bias"]
        temperature = float(fitted["temperature"]) if plain else None
    for name, value in fitted.items():
        program.tensor(f"calibration.{name}").copy_(value)
    tables = {when: judged(meaning, z, held_out.targets.cpu()) for when, z in (("before", found), ("after", after))}
    figures = {when: (scores.softmax(1), answers) for when, (scores, answers) in tables.items()}
    return CalibrationLog(
        kind=kind,
        samples=len(held_out),
        **{f"nll_{when}": metrics.nll(*table) if len(table[1]) else None for when, table in figures.items()},
        **{f"ece_{when}": metrics.ece(*table) if len(table[1]) else None for when, table in figures.items()},
        temperature=temperature,
        note=note,
    )


def kind_of(program: Program) -> str | None:
    """The kind of the program's head, by its buffers; None without one."""
    buffers = {name: buffer for name, buffer in program.named_buffers() if name.startswith("calibration.")}
    if "calibration.temperature" in buffers:
        return "label-temperature" if buffers["calibration.temperature"].ndim else "temperature"
    found = {"calibration.scale": "vector", "calibration.reach": "interval"}
    return next((kind for name, kind in found.items() if name in buffers), None)


def _interval(program: Program, prediction: Tensor, target: Tensor, level: float) -> CalibrationLog:
    buffer, errors = program.tensor("calibration.reach"), (prediction - target).abs()
    if not buffer.ndim and errors.ndim > 1:
        errors = errors.flatten(1).amax(1)  # one reach for all outputs of a sample
    buffer.copy_(conformal.reach(errors, level))
    enough = conformal.needed(level)
    note = (
        f"a rough estimate, from {len(errors)} held-out samples where {enough} are needed"
        if len(errors) < enough
        else None
    )
    return CalibrationLog("interval", len(errors), None, None, None, None, None, note, level)


def _by_label(logits: Tensor, target: Tensor) -> tuple[dict[str, Tensor], str | None]:
    """A temperature of each label [K], 1 where the samples do not determine it."""
    found, left = torch.ones(logits.shape[1]).double(), list[int]()
    answers = (target.cpu() > 0.5).long() if target.dtype is not torch.bool else target.cpu().long()
    for label in range(logits.shape[1]):
        z = logits[:, label]
        try:
            found[label] = fit_temperature(torch.stack([torch.zeros_like(z), z], 1), answers[:, label])
        except ValueError:
            left.append(label)
    if not left:
        return {"temperature": found}, None
    shown = ", ".join(map(str, left[:8])) + (" ..." if len(left) > 8 else "")
    return {
        "temperature": found
    }, f"not fitted for {len(left)} of {len(found)} labels ({shown}), whose samples do not determine it"


def _fitted(kind: str, logits: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], str | None]:
    """Values of the head's buffers, and a note where the samples say little or nothing about them."""
    classes = logits.shape[1]
    ones, zeros = torch.ones(classes).double(), torch.zeros(classes).double()
    identity = {"temperature": torch.ones(()).double()} if kind == "temperature" else {"scale": ones, "bias": zeros}
    found: dict[str, Tensor]
    try:
        if kind == "temperature":
            found = {"temperature": torch.tensor(fit_temperature(logits, labels), dtype=torch.float64)}
        else:
            scale, bias = fit_vector_scaling(logits, labels)
            found = {"scale": scale, "bias": bias}
    except ValueError as error:
        return identity, f"{NOT_FITTED}: {error}"
    if not all(bool(value.float().isfinite().all()) for value in found.values()):
        return identity, f"{NOT_FITTED}: the optimum is not finite"
    if kind == "vector":
        try:
            fit_temperature(logits, labels)
        except NotIdentifiableError as error:
            return found, f"held only by its pull towards 1 and 0: {error}"
    if len(labels) < FEW * classes:
        return found, f"a rough estimate, from {len(labels)} held-out samples of {classes} classes"
    return found, None


def evaluate(program: Program, samples: Samples, *, batch_size: int = 256) -> dict[str, Tensor]:
    """Outputs of the eval phase over all ``samples``, in batches, float64 on the CPU."""
    found = outputs_over(program, samples, batch_size=batch_size)
    return {name: value.double() for name, value in found.items() if isinstance(value, Tensor)}
