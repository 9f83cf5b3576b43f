"""Fit a program's calibration head. Only the head's buffers change.

Fitting never makes a run fail: if the held-out samples do not determine the head, it stays at the identity, and the log says why.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.errors import DataError, TrainingError
from sparsify.figures import metrics
from sparsify.heads import HEADS, Fitted, Head, HeldOut, Scaling, State, fitting, run
from sparsify.ir import Program, surgery
from sparsify.ir.evaluation import outputs_over
from sparsify.ir.traits import named_outputs
from sparsify.parts.samples import Samples
from sparsify.passes.attach_calibration_head import (
    BOUNDS,
    PREFIX,
    head_buffers,
    head_level,
    head_names,
    head_of,
    head_outputs,
)
from sparsify.registry import not_loaded
from sparsify.tasks import Task, build
from sparsify.tasks.base import judged

PROBABILITIES = "probabilities"
"""Name of the output whose figures are measured before and after a fit."""
REPLACE = "To have another head in its place, name it: export.calibrator in a recipe, or attach-calibration-head{kind=... replace=true}."


@dataclass(frozen=True)
class CalibrationLog:
    """What was fitted, and how it changed the figures of the held-out samples.

    Attributes:
        kind: name of the head, such as ``temperature`` or ``interval``.
        samples: number of held-out samples.
        nll_before, nll_after, ece_before, ece_after: figures of the decisions on these samples; None if the head computes no probabilities.
        temperature: temperature of a head that has one; 1.0 if it could not be fitted.
        note: why the head stayed at the identity, or why the fit deserves little trust; None if neither is the case.
        level: share of new samples that an interval should hold; None for other heads.
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
        """Return the fields as JSON-compatible data."""
        found = dataclasses.asdict(self)
        return found if self.level is not None else {key: value for key, value in found.items() if key != "level"}


def fit(
    program: Program,
    held_out: Samples,
    *,
    task: str | Task = "classification",
    level: float | None = None,
    batch_size: int = 256,
) -> CalibrationLog:
    """Fit the head that `attach-calibration-head` inserted.

    Args:
        program: a program with the outputs of a head, such as ``probabilities``, or ``lower`` and ``upper``.
        held_out: samples that are neither training nor test data.
        task: what the outputs mean, as for the pass.
        level: the share of new samples that an interval should hold, in (0, 1). It is kept with the head. None: the level that the head
            was last fitted for, at first 0.9.
        batch_size: batch size of the evaluation.

    Returns:
        What was done. If the samples do not determine the head, it is the identity (temperature 1; scale 1 and bias 0), with a note.

    Raises:
        TrainingError: If there is no head, the head does not fit the task, the level is not in (0, 1), or the program's outputs contain
            NaN or +infinity.
        TaskError: If there is no task of that name.
        DataError: If the targets do not fit the outputs, or there are no samples.
    """
    meaning, head = build(task), _head(program)
    level = head_level(program) if level is None else level
    if not 0 < level < 1:
        raise TrainingError(
            f"level is the share of new samples that an interval should hold, in (0, 1); found {level}. Set 0.9 for 90 %."
        )
    _check_fits(program, head, meaning)
    assert meaning.output is not None, "a task with heads reads one output"
    if not len(held_out):
        raise DataError("there are no held-out samples to calibrate on. Give some that the model was not trained on.")
    found = outputs_over(program, held_out, names=(meaning.output,), batch_size=batch_size)[meaning.output].double()
    if bool((found.isnan() | (found == torch.inf)).any()):
        what = "logits" if meaning.output == "logits" else "predictions"
        raise TrainingError(
            f"{program.name!r} returns NaN or infinite {what} for held-out samples, so there is nothing to calibrate. Lower lr, or check "
            f"the batch norms' running statistics."
        )
    meaning.check(held_out.targets, ("N", *found.shape[1:]))
    held = HeldOut(found, held_out.targets.cpu(), meaning, level)
    fitted = _fitted(head, held, head.identity(_shape(program, meaning.output)))
    for name, value in fitted.values.items():
        program.tensor(PREFIX + name).copy_(value)
    surgery.record_level(program, "eval", level)
    return _log(head, held, fitted)


def kind_of(program: Program) -> str | None:
    """Return the name of the program's head; None if it has none, or none that is installed."""
    head = head_of(program)
    return None if head is None else head.name


def installed_kind(program: Program) -> str | None:
    """Return the name of the program's head; None if it has none.

    Raises:
        TrainingError: If the head is not installed.
    """
    return _head(program).name if head_names(program) or head_buffers(program) else None


def evaluate(program: Program, samples: Samples, *, batch_size: int = 256) -> dict[str, Tensor]:
    """Compute the outputs of the eval phase for all ``samples``, in batches; returns float64 tensors on the CPU."""
    found = outputs_over(program, samples, batch_size=batch_size)
    return {name: value.double() for name, value in found.items() if isinstance(value, Tensor)}


def _head(program: Program) -> Head:
    found, names, buffers = head_of(program), head_names(program), head_buffers(program)
    if found is not None:
        return found
    if not names and not buffers:
        raise TrainingError(f"{program.name!r} has no calibration head. Apply attach-calibration-head first.")
    told, made = ", ".join(map(repr, names)), ", ".join(head_outputs(program, "eval")) or "no output"
    if len(names) > 1:
        raise TrainingError(
            f"{program.name!r} names the calibration heads {told} for its outputs {made}, and a program has one. {REPLACE}"
        )
    listed = ", ".join(f"{name} {list(shape)}" for name, shape in buffers.items())
    has = f"{program.name!r} has {f'the calibration head {told}' if names else 'a calibration head'}"
    has += f" with {f'the buffers {listed}' if buffers else 'no buffers'}, which makes {made}"
    if names and names[0] in HEADS:
        own = ", ".join(
            f"{name} of {'any' if n is None else n} dimensions" for name, n in HEADS[names[0]].buffers.items()
        )
        raise TrainingError(
            f"{has}; the installed head of that name has {own or 'none'}. Install the version of the package that it is from. {REPLACE}"
        )
    lacks = "no head of that name is installed" if names else "no head that is installed has these"
    raise TrainingError(f"{has}, and {lacks}. Install the package that it is from. {REPLACE}{not_loaded()}")


def _check_fits(program: Program, head: Head, task: Task) -> None:
    """Check that the program has the output that the task reads, and a head that fits the task."""
    kinds, known = fitting(task), task.output in program.output_names("eval")
    if head.name in kinds and known:
        return
    made = program.task.name if program.task is not None else None
    advice = f"task={made!r}" if made not in (None, task.name) else "the task that the head was attached for"
    raise TrainingError(
        f"{program.name!r} returns {', '.join(program.output_names('eval'))} and has the head {head.name!r}; task {task.name!r} reads "
        f"{task.output!r} and has {' and '.join(kinds) or 'no'} heads. Give {advice}: fit(program, samples, task=...)."
    )


def _shape(program: Program, output: str) -> tuple[int | str, ...]:
    return named_outputs(program.output_node("eval"))[output].meta["spec"].shape


def _fitted(head: Head, held: HeldOut, identity: State) -> Fitted:
    """Fit the head; returns the identity with a note if the samples do not determine it."""
    start = {name: value.double() for name, value in identity.items()}
    try:
        return head.fit(held, start)
    except ValueError as error:
        return Fitted(start, f"not fitted, so {head.unfitted}: {error}")


def _log(head: Head, held: HeldOut, fitted: Fitted) -> CalibrationLog:
    figures = dict.fromkeys(("nll_before", "nll_after", "ece_before", "ece_after"))
    if PROBABILITIES in head.outputs and PROBABILITIES not in head.beside and held.task.link != "none":
        scores, answers = held.judged
        if len(answers):
            for when, table in (("before", scores.softmax(1)), ("after", _after(head, held, fitted.values))):
                figures |= {f"nll_{when}": metrics.nll(table, answers), f"ece_{when}": metrics.ece(table, answers)}
    temperature = fitted.values.get("temperature")
    return CalibrationLog(
        kind=head.name,
        samples=len(held.output),
        **figures,
        temperature=None if temperature is None or temperature.ndim else float(temperature),
        note=fitted.note,
        level=held.level if BOUNDS & {*head.outputs} else None,
    )


def _after(head: Head, held: HeldOut, values: State) -> Tensor:
    """Compute the calibrated probabilities of all judged decisions, [M, K]."""
    if isinstance(head, Scaling):
        return judged(held.task, head.scaled(run, held.output, values), held.target)[0].softmax(1)
    made = dict(zip(head.outputs, head.apply(run, held.output, values, held.task), strict=True))[PROBABILITIES]
    table, _ = judged(held.task, made, held.target)
    if held.task.link == "sigmoid":
        return torch.stack([1 - table[:, 1], table[:, 1]], dim=1)
    return table
