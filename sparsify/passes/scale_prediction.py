"""``scale-prediction``: let the model learn values with mean 0 and deviation 1, and scale its output to the units of the targets."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from sparsify.arguments import checked
from sparsify.errors import DataError, PassError, TrainingWarning
from sparsify.ir import PHASES, Program, Stage, TensorSpec, surgery
from sparsify.ir.heads import head_outputs
from sparsify.ir.traits import named_outputs
from sparsify.passes.base import UNCHANGED, Effect, Kept, Pass, PassLog
from sparsify.tasks import Regression
from sparsify.tasks.base import shown

aten = torch.ops.aten
OUTPUT = "prediction"
MEAN, DEVIATION = "prediction_scale.mean", "prediction_scale.deviation"
"""Names of the buffers: one number per column [K] for an output [N, K], else a single number [1]."""


@dataclass(frozen=True)
class ScalePrediction(Pass):
    """Multiply a prediction by the buffer ``prediction_scale.deviation`` and add ``prediction_scale.mean``, in both phases.

    The prediction is the output ``prediction``. The buffers are 1 and 0 until they are set (`set_scale`), so the pass itself changes no
    output. They have one number per column for an output [N, K], and a single number for other shapes. If the program has a calibration
    head, the head reads the scaled value from then on; fit it after setting the scale.

    Raises:
        PassError: If the program was traced for a task other than a regression, already has these buffers, or has no floating-point
            output called ``prediction``.
    """

    name: ClassVar = "scale-prediction"
    requires: ClassVar = (Stage.TRACED, Stage.MASKED)
    effects: ClassVar = Effect.GRAPH | Effect.NAMES

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return {"train": UNCHANGED, "eval": UNCHANGED}

    def run(self, program: Program) -> PassLog:
        log = PassLog(self.name)
        if scale_of(program) is not None:
            raise PassError(f"{self.name}: {program.name!r} is scaled already. Set its scale with set_scale.")
        _check_task(program)
        found = {phase: _value(program, phase) for phase in PHASES}
        spec: TensorSpec = found["eval"].meta["spec"]
        columns = spec.shape[1] if len(spec.shape) == 2 else 1
        size = columns if isinstance(columns, int) else 1
        dtype = getattr(torch, spec.dtype)
        surgery.add_state(program, DEVIATION, torch.ones(size, dtype=dtype))
        surgery.add_state(program, MEAN, torch.zeros(size, dtype=dtype))
        for phase, value in found.items():
            readers = _head_readers(program, phase, value)
            first = next((node for node in program.phases[phase].graph.nodes if node in readers), None)
            place = first or program.output_node(phase)
            deviation = surgery.state_node(program, phase, DEVIATION, before=place)
            mean = surgery.state_node(program, phase, MEAN, before=place)
            own = value.meta["spec"]
            product = surgery.call_after(program, phase, mean, aten.mul.Tensor, (value, deviation), spec=own)
            total = surgery.call_after(program, phase, product, aten.add.Tensor, (product, mean), spec=own)
            surgery.replace_output(program, phase, OUTPUT, total)
            surgery.reroute(value, total, users=readers)
        log.change(OUTPUT)
        return log


def _check_task(program: Program) -> None:
    if not isinstance(program.task, Regression | None):
        raise PassError(
            f"{ScalePrediction.name}: {program.name!r} was traced for the task {program.task.name!r}, and only the targets of a regression "
            f"have a scale. Trace the model with task='regression'."
        )


def _value(program: Program, phase: str) -> fx.Node:
    """Return the node of the unscaled prediction."""
    outputs = named_outputs(program.output_node(phase))
    if OUTPUT not in outputs:
        raise PassError(
            f"{ScalePrediction.name}: {program.name!r} returns {', '.join(outputs)}, and no {OUTPUT}. Only the targets of a regression "
            f"have a scale. Trace the model with task='regression'."
        )
    value: fx.Node = outputs[OUTPUT]
    spec: TensorSpec = value.meta["spec"]
    if not getattr(torch, spec.dtype).is_floating_point or not spec.shape:
        raise PassError(
            f"{ScalePrediction.name}: {OUTPUT!r} of {program.name!r} is {spec}; what is scaled is floating-point and has one row per "
            f"sample. Return such an output, or leave the pass out."
        )
    return value


def _head_readers(program: Program, phase: str, value: fx.Node) -> list[fx.Node]:
    """Return the nodes of a calibration head that read the value."""
    behind = head_outputs(program, phase).values()
    return [user for user in value.users if any(user in found for found in behind)]


@checked(
    PassError,
    program="fit_scale takes a traced program first, found {found}. Trace the model: sparsify.trace(model, (x,), task='regression').",
    targets="fit_scale takes the training targets second, a tensor [N, ...], found {found}. Make one with torch.as_tensor.",
)
def fit_scale(program: Program, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Let a model learn regression targets with mean 0 and deviation 1, and predict them in their own units.

    Applies `ScalePrediction` to the program and sets its buffers. Call it before training: ``trainer.loss`` then measures errors divided
    by the deviation. A program that is already scaled gets the new mean and deviation.

    Args:
        program: traced for a regression, of stage TRACED or MASKED; changed in place.
        targets: targets of the training samples, [N, ...], of the shape of the prediction.

    Returns:
        Mean and deviation: per column, [K], for a prediction [N, K]; else over all values, [1]. A constant column gets deviation 1, so it
        is only shifted, and a warning names it.

    Raises:
        PassError: If the program was traced for another task, or returns nothing that can be scaled.
        DataError: If the targets do not fit the prediction, or are empty.

    Examples:
        >>> import torch
        >>> import sparsify as sp
        >>> from sparsify.passes import fit_scale
        >>> program = sp.trace(torch.nn.Linear(2, 1), torch.rand(2, 2), task="regression")
        >>> mean, deviation = fit_scale(program, torch.tensor([100.0, 300.0]))
        >>> mean.tolist(), deviation.tolist()
        ([200.0], [100.0])
    """
    _check_task(program)
    task = Regression() if program.task is None else program.task
    assert isinstance(task, Regression)
    shape = _value(program, "eval").meta["spec"].shape
    task.check(targets, shape)
    if not targets.numel():
        raise DataError(
            f"the scale of {program.name!r} comes from the training targets, and {shown(targets)} holds none. Give the targets of all "
            f"training samples."
        )
    mean, deviation = task.moments(targets, shape)
    _warn_of_constants(mean, deviation)
    deviation = deviation.where(deviation > 0, 1.0)
    if scale_of(program) is None:
        ScalePrediction()(program)
    set_scale(program, mean, deviation)
    return mean, deviation


def _warn_of_constants(mean: Tensor, deviation: Tensor) -> None:
    constant = (deviation == 0).nonzero().flatten().tolist()
    if not constant:
        return
    listed = ", ".join(f"{place} (always {float(mean[place]):g})" for place in constant[:8])
    more = f" and {len(constant) - 8} more" if len(constant) > 8 else ""
    warnings.warn(
        f"the training targets have columns of one value, which are only shifted: {listed}{more}. Leave them out if they tell nothing.",
        TrainingWarning,
        stacklevel=4,
    )


def set_scale(program: Program, mean: Tensor, deviation: Tensor) -> None:
    """Set the scale of a program that `ScalePrediction` changed.

    Args:
        program: the program whose buffers are set.
        mean: [K], or [1], in the units of the targets.
        deviation: of the same shape, above 0, in the units of the targets.
    """
    with torch.no_grad():
        program.get_buffer(MEAN).copy_(mean)
        program.get_buffer(DEVIATION).copy_(deviation)


def scale_of(program: Program) -> tuple[Tensor, Tensor] | None:
    """Return mean and deviation, each [K] or [1], of a program that `ScalePrediction` changed; else None."""
    found = dict(program.named_buffers())
    return (found[MEAN], found[DEVIATION]) if MEAN in found and DEVIATION in found else None


def deviation_of(program: Program) -> Tensor | None:
    """Return the deviation of `scale_of`. It is looked up without walking the modules, because a trainer reads it at every step."""
    module, _, name = DEVIATION.partition(".")
    owner = program._modules.get(module)
    return None if owner is None else owner._buffers.get(name)


def scale_row(program: Program) -> dict[str, dict[str, list[float]]]:
    """Return mean and deviation of a scaled program as plain data under ``scale``; empty if the prediction is not scaled."""
    found = scale_of(program)
    return {} if found is None else {"scale": {"mean": found[0].tolist(), "deviation": found[1].tolist()}}
