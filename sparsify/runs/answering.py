"""What the models of a run answer to the test samples: their scores and probabilities, and pictures of samples."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sparsify.calibration import evaluate
from sparsify.figures.selection_scores import chosen, chosen_quality
from sparsify.ir import Program
from sparsify.loading import Data
from sparsify.parts.trees import mapped
from sparsify.reports import calibrated
from sparsify.tasks import Task

JUDGED = ("classification", "binary")
"""Tasks of one answer per sample, whose answers are kept and compared by class."""
LONGEST_SIDE = 64
"""Largest number of pixels of a side of a picture in a report."""
CHANNELS = {1: "L", 3: "RGB"}


def scored(task: Task, read: Any, outputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    """Return the scores [N, K] that answers are the highest of, and the calibrated probabilities [N, K].

    There are none for other tasks, and for a model whose outputs are NaN.

    Args:
        task: of the run.
        read: what it reads of the outputs on the test samples.
        outputs: all outputs, with ``probabilities`` if there is a head that makes them.
    """
    if task.name not in JUDGED or bool(read.isnan().any()):
        return None
    if task.name == "classification":
        return read, calibrated(read, outputs)
    scores = task.scores(read)
    assert scores is not None, "a yes/no task has scores"
    yes = outputs["probabilities"].flatten() if "probabilities" in outputs else read.flatten().sigmoid()
    return scores, torch.stack([1 - yes, yes], dim=1)


def chosen_confidence(
    program: Program, task: Task, read: Any, outputs: Mapping[str, Tensor], data: Data
) -> dict[str, Any]:
    """Choose the confidence of a classifier's answers on held-out samples, and measure it on the test samples.

    Args:
        program: a trained program with its calibration head.
        task: of the run.
        read: what it reads of the outputs on the test samples.
        outputs: all outputs on the test samples.
        data: of the run; its validation part is held out.

    Returns:
        ``chosen_confidence`` of ``metrics.json``; empty for other tasks.
    """
    if task.name != "classification":
        return {}
    held_out = evaluate(program, data.validation)
    logits = program.reading(task.output, "eval", list(held_out.values()))
    choice = chosen(calibrated(logits, held_out), logits, data.validation.targets)
    return {"chosen_confidence": chosen_quality(choice, calibrated(read, outputs), read, data.test.targets)}


def pictures(data: Data, samples: Sequence[int]) -> dict[str, str]:
    """Return test samples as PNG in base64, by their numbers; empty if the inputs are no images of one or three channels.

    The normalisation of the run is undone. Values that were not given as bytes are scaled from the lowest to the highest of these samples.
    """
    if not samples:
        return {}
    inputs = data.test.batch(torch.tensor(samples)).inputs
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or inputs.shape[1] not in CHANNELS:
        return {}
    values = inputs.double()
    if data.statistics is not None:
        mean, std = (mapped(lambda v: v.double().view(1, -1, 1, 1), value) for value in data.statistics)
        values = values * std + mean
    if data.given_as != "bytes":
        low, high = values.min(), values.max()
        values = (values - low) / (high - low).clamp_min(1e-12)
    pixels = (values.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return {str(sample): _png(image) for sample, image in zip(samples, pixels, strict=True)}


def _png(pixels: np.ndarray) -> str:
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
