"""Scales regression targets to mean 0 and deviation 1 for the model, while everyone else sees their own units."""

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
"""Largest number of validation samples on which to check whether a model already predicts the targets."""
PREDICTION = "prediction"
KNOWN = 0.0
"""A model whose R2 is above this before training predicts the targets in their own units."""


def standardised(program: Program, task: Task, data: Data) -> Program:
    """Scale the prediction of a program to the training targets (`fit_scale`), if the task is a regression; returns the same program.

    A program stays unchanged if it already predicts the targets (for example with loaded weights), is for another task, already has a
    scale (such as a saved program), or has a loss of the user's own, which measures errors in their own units.

    Args:
        program: a program traced for the task.
        task: task of the run.
        data: data whose training targets fit the output.
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
    """Say why a model is useless: its outputs are not finite, or it is worse on validation samples than a constant answer; else empty.

    Args:
        task: task of the run.
        read: what the task reads of the outputs for the test samples.
        validated: figures of the validation samples; None: do not check them.
    """
    if isinstance(read, Tensor) and (wrong := int((~read.isfinite()).sum())):
        return f"{wrong} of {read.numel()} outputs of the test samples are NaN or infinite"
    said = task.shortfall(validated) if validated else ""
    return f"on the validation samples {said}" if said else ""
