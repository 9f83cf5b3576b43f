"""Targets of a regression at mean 0 and deviation 1 for the model, and in their own units for everyone else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsify.ir import Program
from sparsify.ir.evaluation import outputs_over
from sparsify.loading import Data
from sparsify.parts.samples import Subset
from sparsify.passes.scale_prediction import fit_scale, scale_of
from sparsify.tasks import Regression, Task

LOOKED_AT = 1024
"""Validation samples at most on which a model shows that it predicts the targets already."""
PREDICTION = "prediction"
KNOWN = 0.0
"""A model whose R2 is above this before training predicts the targets in their own units."""


def standardised(program: Program, task: Task, data: Data) -> Program:
    """The program, itself, with the scale of the training targets after its prediction (`fit_scale`), where the task asks for that.

    A model that predicts the targets before training, as one of loaded weights does, is left as it is, and so is one of another task, of
    a loss of the user's own, which weighs errors in their own units, or with a scale already, such as a saved program.

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
    fit_scale(program, data.train.targets)
    return program


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
