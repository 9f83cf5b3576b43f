"""What a run measures of its models under shift, on images that noise, blur or light changed: ``data.shift``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsify.calibration import evaluate
from sparsify.errors import DataError
from sparsify.figures.shift import shift_figures
from sparsify.ir import Program
from sparsify.ir.evaluation import joined
from sparsify.loading import Data
from sparsify.pages.shifts import UNCHANGED
from sparsify.parts.samples import TensorSamples
from sparsify.reading.shifts import KINDS, PIECE, SEVERITIES, not_images, shifted
from sparsify.reports import calibrated
from sparsify.runs.artefacts import feeding
from sparsify.runs.recipe import Recipe
from sparsify.tasks import Task

BYTES = 255.0
"""Scale of images that were given as bytes."""


def check_shift(recipe: Recipe, data: Data) -> None:
    """Refuse a recipe that asks for figures under shift of data that are no images, or of another task than classification.

    Raises:
        DataError: If it does.
    """
    if not recipe.shift:
        return
    if recipe.task != "classification":
        raise DataError(
            f"data.shift measures the confidence of classifiers, and the task is {recipe.task!r}. Leave it out."
        )
    reason = "there are several" if not isinstance(data.example(1), Tensor) else _no_pixels(data)
    if reason is not None:
        raise DataError(
            f"data.shift changes images [N, C, H, W], of bytes or of floats in [0, 1] before normalisation, but the inputs of "
            f"{recipe.data} are others: {reason}. Leave it out."
        )


def shift_rows(
    recipe: Recipe, program: Program, task: Task, outputs: Mapping[str, Tensor], data: Data
) -> dict[str, Any]:
    """Measure a model on the test samples at every kind and severity of shift; empty where the recipe does not ask for it.

    Args:
        recipe: of the run.
        program: calibrated.
        task: of the run.
        outputs: of the program, on the test samples as they are.
        data: of the run.

    Returns:
        ``shift`` of ``metrics.json``: figures by kind, a list by severity, and ``unchanged``.
    """
    if not recipe.shift:
        return {}
    found: dict[str, Any] = {UNCHANGED: _row(program, task, outputs, data)}
    for kind in KINDS:
        found[kind] = [_row(program, task, _outputs(program, data, kind, severity), data) for severity in SEVERITIES]
    return {"shift": found}


def _no_pixels(data: Data) -> str | None:
    """Return why test inputs are no images. All bytes are alike, and so one piece stands for them."""
    pieces = torch.arange(len(data.test)).split(PIECE)
    found = (not_images(_pixels(data, rows).numpy()) for rows in pieces[: 1 if data.given_as == "bytes" else None])
    return next((reason for reason in found if reason is not None), None)


def _pixels(data: Data, rows: Tensor) -> Tensor:
    """Return test samples as they were before normalisation: bytes, or floats."""
    inputs, step = data.test.batch(rows).inputs, feeding(data).get("preprocessing")
    assert isinstance(inputs, Tensor)
    if step is None or not inputs.is_floating_point():
        return inputs
    if step.scale == BYTES:
        return step.stored(inputs)
    mean, std = (
        torch.tensor(value, dtype=torch.float64).view(1, -1, *(1,) * (inputs.ndim - 2))
        for value in (step.mean, step.std)
    )
    return (inputs.double() * std + mean).round(decimals=6).float()  # 0 and 1 come back as such


def _outputs(program: Program, data: Data, kind: str, severity: int) -> dict[str, Tensor]:
    """Return the outputs for all test samples under one shift, of which one piece at a time is held in memory."""
    parts, step = list[dict[str, Tensor]](), feeding(data).get("preprocessing")
    for piece, rows in enumerate(torch.arange(len(data.test)).split(PIECE)):
        changed = torch.from_numpy(shifted(_pixels(data, rows).numpy(), kind, severity, piece=piece))
        inputs = changed if step is None else step.inputs(changed)
        parts.append(evaluate(program, TensorSamples(inputs, torch.zeros(len(rows), dtype=torch.int64))))
    return {name: joined([part[name] for part in parts]) for name in parts[0]}


def _row(program: Program, task: Task, outputs: Mapping[str, Tensor], data: Data) -> dict[str, Any]:
    logits = program.reading(task.output, "eval", list(outputs.values()))
    tables = {"before": logits.softmax(1), "after": calibrated(logits, outputs)}
    return shift_figures(tables, outputs, data.test.targets)
