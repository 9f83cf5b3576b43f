"""Fit a program's heads. Only their buffers change.

Fitting never makes a run fail: if the samples do not determine a head, it stays at the identity, and the log says why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparsify.calibration.held import held_out as read_samples
from sparsify.errors import DataError, TrainingError
from sparsify.figures import metrics
from sparsify.heads import HEADS, Fitted, Head, HeldOut, Scaling, State, fitting, run
from sparsify.heads.base import FEATURES, OUTPUT
from sparsify.ir import Program, surgery
from sparsify.ir.evaluation import outputs_over
from sparsify.ir.features import check_features, classifier_of
from sparsify.ir.heads import (
    BOUNDS,
    Attached,
    attached,
    calibrating,
    head_buffers,
    head_level,
    head_names,
    head_of,
    main_head,
    needing_features,
)
from sparsify.ir.traits import named_outputs
from sparsify.parts.samples import Samples
from sparsify.registry import not_loaded
from sparsify.tasks import Task, build
from sparsify.tasks.base import judged

PROBABILITIES = "probabilities"
"""Name of the output whose figures are measured before and after a fit."""
REPLACE = "To have another head in its place, name it: export.calibrator in a recipe, or attach-calibration-head{kind=... replace=true}."


@dataclass(frozen=True)
class HeadLog:
    """The fit of a head that does not calibrate.

    Attributes:
        head: the head, such as ``lac:0.9``.
        outputs: names of its outputs.
        samples: number of samples that it was fitted to.
        of: ``held-out`` or ``training``.
        figures: what the fit found, by name.
        note: why the head was not fitted, or why the fit deserves little trust; None if neither is the case.
        values: what the head was asked for, the values of its fields by name, such as ``coverage``.
    """

    head: str
    outputs: tuple[str, ...]
    samples: int
    of: str
    figures: Mapping[str, float]
    note: str | None = None
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CalibrationLog:
    """What was fitted, and how it changed the figures of the held-out samples.

    Attributes:
        kind: name of the head that calibrates, such as ``temperature`` or ``interval``.
        samples: number of held-out samples.
        nll_before, nll_after, ece_before, ece_after: figures of the decisions on these samples; None if the head computes no probabilities.
        temperature: temperature of a head that has one; 1.0 if it could not be fitted.
        note: why the head stayed at the identity, or why the fit deserves little trust; None if neither is the case.
        level: share of new samples that an interval should hold; None for other heads.
        heads: the fits of the program's other heads, in their order.
        figures: what the fit found besides, by name.
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
    heads: tuple[HeadLog, ...] = ()
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Return the fields as JSON-compatible data."""
        found = dataclasses.asdict(self)
        left_out = {key for key in ("level", "heads", "figures") if found[key] is None or not found[key]}
        return {key: value for key, value in found.items() if key not in left_out}


def fit(
    program: Program,
    held_out: Samples,
    *,
    task: str | Task = "classification",
    level: float | None = None,
    batch_size: int = 256,
    training: Samples | None = None,
) -> CalibrationLog:
    """Fit the heads that `attach-calibration-head` inserted, in the order in which they were attached.

    Args:
        program: a program with the outputs of a head, such as ``probabilities``, or ``lower`` and ``upper``.
        held_out: samples that are neither training nor test data.
        task: what the outputs mean, as for the pass.
        level: the share of new samples that an interval should hold, in (0, 1). It is kept with the head. None: the level that the head
            was last fitted for, at first 0.9.
        batch_size: batch size of the evaluation.
        training: samples that the model was trained on, without augmentation, for heads that keep statistics of them
            (`sparsify.heads.Head.samples`).

    Returns:
        What was done. If the samples do not determine a head, it is the identity (temperature 1; scale 1 and bias 0), with a note.

    Raises:
        TrainingError: If there is no head, a head does not fit the task, a head needs training samples and there are none, the level is
            not in (0, 1), or the program's outputs contain NaN or +infinity.
        TaskError: If there is no task of that name.
        DataError: If the targets do not fit the outputs, or there are no samples.
    """
    meaning, main = build(task), _main(program)
    level = head_level(program) if level is None else level
    if not 0 < level < 1:
        raise TrainingError(
            f"level is the share of new samples that an interval should hold, in (0, 1); found {level}. Set 0.9 for 90 %."
        )
    every = attached(program)
    for one in every:
        _check_fits(program, _installed(program, one), meaning)
        if one.head is not None and one.head.samples == "training" and training is None:
            raise TrainingError(
                f"the head {one.spec!r} keeps statistics of training samples. Give them: fit(program, held_out, training=...)."
            )
    assert meaning.output is not None, "a task with heads reads one output"
    if not len(held_out):
        raise DataError("there are no held-out samples to calibrate on. Give some that the model was not trained on.")
    log: CalibrationLog | None = None
    logs: list[HeadLog] = []
    for one in every:
        mine = _installed(program, one)
        samples = training if mine.samples == "training" and training is not None else held_out
        held = _held(program, mine, samples, meaning, level, batch_size)
        identity = mine.identity(_shapes(program, mine, meaning.output))
        _check_buffers(program, one, identity)
        fitted = _fitted(mine, held, identity)
        for name, value in fitted.values.items():
            program.tensor(one.prefix + name).copy_(value)
        if one == main:
            log = _log(mine, held, fitted)
        else:
            values = {key.name: getattr(mine, key.name) for key in dataclasses.fields(mine)}
            logs.append(
                HeadLog(mine.spec, one.outputs, len(samples), mine.samples, dict(fitted.figures), fitted.note, values)
            )
    surgery.record_level(program, "eval", level)
    assert log is not None, "the head that calibrates is one of all"
    return dataclasses.replace(log, heads=tuple(logs))


def kind_of(program: Program) -> str | None:
    """Return the program's head as a recipe writes it; None if it has none, or none that is installed."""
    head = head_of(program)
    return None if head is None else head.spec


def installed_kind(program: Program) -> str | None:
    """Return the program's head as a recipe writes it; None if it has none.

    Raises:
        TrainingError: If the head is not installed.
    """
    return _installed(program, _main(program)).spec if head_names(program) or head_buffers(program) else None


def evaluate(program: Program, samples: Samples, *, batch_size: int = 256) -> dict[str, Tensor]:
    """Compute the outputs of the eval phase for all ``samples``, in batches; returns float64 tensors on the CPU."""
    found = outputs_over(program, samples, batch_size=batch_size)
    return {name: value.double() for name, value in found.items() if isinstance(value, Tensor)}


def _main(program: Program) -> Attached:
    """Return the head that calibrates, which is installed.

    Raises:
        TrainingError: If there is none, it is not installed, or two calibrate.
    """
    found = main_head(program)
    if found is None:
        raise TrainingError(f"{program.name!r} has no calibration head. Apply attach-calibration-head first.")
    rivals = calibrating(program)
    for one in rivals:
        known = HEADS.get((one.spec or "").partition(":")[0])
        if known is not None and not known.calibrates:
            _installed(program, one)
    if len(rivals) > 1:
        told = ", ".join(repr(one.spec) for one in rivals)
        made = ", ".join(name for one in rivals for name in one.outputs)
        raise TrainingError(
            f"{program.name!r} names the calibration heads {told} for its outputs {made}, and one head of a program calibrates. {REPLACE}"
        )
    _installed(program, found)
    return found


def _installed(program: Program, found: Attached) -> Head:
    """Return a head of a program.

    Raises:
        TrainingError: If it is not installed.
    """
    if found.head is not None:
        return found.head
    listed = ", ".join(f"{name} {list(shape)}" for name, shape in found.buffers.items())
    made = ", ".join(found.outputs) or "no output"
    has = f"{program.name!r} has {f'the calibration head {found.spec!r}' if found.spec else 'a calibration head'}"
    has += f" with {f'the buffers {listed}' if listed else 'no buffers'}, which makes {made}"
    name = (found.spec or "").partition(":")[0]
    if name in HEADS:
        own = ", ".join(f"{name} of {'any' if n is None else n} dimensions" for name, n in HEADS[name].buffers.items())
        raise TrainingError(
            f"{has}; the installed head of that name, {HEADS[name].spec!r}, has {own or 'none'}. Install the version of the package that "
            f"it is from. {REPLACE}"
        )
    lacks = "no head of that name is installed" if name else "no head that is installed has these"
    raise TrainingError(f"{has}, and {lacks}. Install the package that it is from. {REPLACE}{not_loaded()}")


def _check_buffers(program: Program, found: Attached, identity: State) -> None:
    """Check that the buffers of a head have the shapes that it expects for this program.

    Raises:
        TrainingError: If they do not, as in a file that was changed.
    """
    for name, value in identity.items():
        shape = tuple(program.tensor(found.prefix + name).shape)
        if shape != tuple(value.shape):
            raise TrainingError(
                f"{program.name!r} has the head {found.spec!r}, whose buffer {name} has shape {list(shape)} in the program, and expects "
                f"{list(value.shape)}. {REPLACE}"
            )


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


def _held(program: Program, head: Head, samples: Samples, task: Task, level: float, batch_size: int) -> HeldOut:
    """Compute everything that a head is fitted to.

    Raises:
        TrainingError: If the outputs contain NaN or +infinity.
        DataError: If the targets do not fit the outputs.
    """
    if FEATURES in head.reads:
        with needing_features(head.spec, task):
            check_features(program, samples)
    held = read_samples(program, samples, task, head.reads, level=level, batch_size=batch_size)
    found = held.output
    if bool((found.isnan() | (found == torch.inf)).any()):
        what = "logits" if task.output == "logits" else "predictions"
        raise TrainingError(
            f"{program.name!r} returns NaN or infinite {what} for held-out samples, so there is nothing to calibrate. Lower lr, or check "
            f"the batch norms' running statistics."
        )
    task.check(samples.targets, ("N", *found.shape[1:]))
    return held


def _shapes(program: Program, head: Head, output: str) -> Any:
    """Return the shape of what a head reads, or a tuple of shapes."""
    nodes = named_outputs(program.output_node("eval"))

    def shape(name: str) -> Any:
        if name == FEATURES:
            return "N", classifier_of(program).weight.shape[1]
        return nodes[output if name == OUTPUT else name].meta["spec"].shape

    found = tuple(map(shape, head.reads))
    return found[0] if len(found) == 1 else found


def _fitted(head: Head, held: HeldOut, identity: State) -> Fitted:
    """Fit the head; returns the identity with a note if the samples do not determine it."""
    start = {name: value.double() for name, value in identity.items()}
    try:
        return head.fit(held, start)
    except ValueError as error:
        return Fitted(start, f"not fitted, so {head.unfitted}: {error}")


def _log(head: Head, held: HeldOut, fitted: Fitted) -> CalibrationLog:
    figures: dict[str, Any] = dict.fromkeys(("nll_before", "nll_after", "ece_before", "ece_after"))
    if PROBABILITIES in head.outputs and PROBABILITIES not in head.beside and held.task.link != "none":
        scores, answers = held.judged
        if len(answers):
            for when, table in (("before", scores.softmax(1)), ("after", _after(head, held, fitted.values))):
                figures |= {f"nll_{when}": metrics.nll(table, answers), f"ece_{when}": metrics.ece(table, answers)}
    single = (value for name, value in fitted.values.items() if name.endswith("temperature") and not value.ndim)
    temperature = next(single, None)
    return CalibrationLog(
        kind=head.name,
        samples=len(held.output),
        **figures,
        temperature=None if temperature is None else float(temperature),
        note=fitted.note,
        level=held.level if BOUNDS & {*head.outputs} else None,
        figures=dict(fitted.figures),
    )


def _after(head: Head, held: HeldOut, values: State) -> Tensor:
    """Compute the calibrated probabilities of all judged decisions, [M, K]."""
    if isinstance(head, Scaling):
        return judged(held.task, head.scaled(run, held.output, values), held.target)[0].softmax(1)
    made = dict(zip(head.outputs, head.apply(run, held.read(head), values, held.task), strict=True))[PROBABILITIES]
    table, _ = judged(held.task, made, held.target)
    if held.task.link == "sigmoid":
        return torch.stack([1 - table[:, 1], table[:, 1]], dim=1)
    return table
