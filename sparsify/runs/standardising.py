"""Targets of a regression at mean 0 and deviation 1 for the model, and in their own units for everyone else."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import torch
from torch import Tensor

from sparsify.errors import TrainingWarning
from sparsify.ir import Program
from sparsify.ir.evaluation import outputs_over
from sparsify.loading import Data
from sparsify.parts.samples import Subset
from sparsify.passes import Pipeline, ScalePrediction
from sparsify.passes.scale_prediction import scale_of, set_scale
from sparsify.tasks import Regression, Task

LOOKED_AT = 1024
"""Validation samples at most on which a model shows that it predicts the targets already."""
PREDICTION = "prediction"
KNOWN = 0.0
"""A model whose R2 is above this before training predicts the targets in their own units."""


def standardised(program: Program, task: Task, data: Data) -> Program:
    """The program with the scale of the training targets after its prediction, where the task asks for that.

    A model that predicts the targets before training, as one of loaded weights does, is left as it is, and so is one of another task, of
    a loss of the user's own, which weighs errors in their own units, or with a scale already, such as a saved program. Columns that have
    one value in the training part are warned of; their deviation is taken to be 1.

    Args:
        program: traced for the task.
        task: of the run.
        data: whose training targets fit the output.
    """
    if not isinstance(task, Regression) or not isinstance(data.train.targets, Tensor):
        return program
    if task.scale == "none" or callable(task.criterion):
        return program
    if scale_of(program) is not None:
        return program
    first = Subset(data.validation, torch.arange(min(LOOKED_AT, len(data.validation))))
    found = outputs_over(program.eval(), first, names={PREDICTION})[PREDICTION]
    if task.figures(found, first.targets)["r2"] > KNOWN:
        return program
    mean, deviation = task.moments(data.train.targets, ("N", *found.shape[1:]))
    constant = (deviation == 0).nonzero().flatten().tolist()
    if constant:
        listed = ", ".join(f"{place} (always {float(mean[place]):g})" for place in constant[:8])
        more = f" and {len(constant) - 8} more" if len(constant) > 8 else ""
        warnings.warn(
            f"the training targets have columns of one value, which are only shifted: {listed}{more}. Leave them out if they tell nothing.",
            TrainingWarning,
            stacklevel=2,
        )
    scaled = Pipeline((ScalePrediction(),))(program)
    set_scale(scaled, mean, deviation.where(deviation > 0, 1.0))
    return scaled


def learned(task: Task, program: Program) -> Task:
    """The task that a program is trained for: errors of a regression are divided by the deviation that its prediction is multiplied by."""
    found = scale_of(program)
    if not isinstance(task, Regression) or found is None:
        return task
    return dataclasses.replace(task, deviations=tuple(found[1].tolist()))


def scale_row(program: Program) -> dict[str, Any]:
    """Mean and deviation of the training targets that a prediction is made of, for ``metrics.json``; empty where it is not scaled."""
    found = scale_of(program)
    if found is None:
        return {}
    mean, deviation = found
    return {"scale": {"mean": mean.tolist(), "deviation": deviation.tolist()}}


def shortfall(task: Task, read: Any, validated: dict[str, float] | None) -> str:
    """Why a model is of no use: outputs that are not finite, or worse on validation samples than one answer for all; else empty.

    Args:
        task: of the run.
        read: what the task reads of the outputs of the test samples.
        validated: figures of the validation samples; None: not looked at.
    """
    if isinstance(read, Tensor) and (wrong := int((~read.isfinite()).sum())):
        return f"{wrong} of {read.numel()} outputs of the test samples are NaN or infinite"
    said = task.shortfall(validated) if validated else ""
    return f"on the validation samples {said}" if said else ""
