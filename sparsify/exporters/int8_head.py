"""The calibration head of an int8 file, fitted again to what the file itself gives for the held-out samples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from sparsify.exporters.int8_samples import Samples
from sparsify.parts import conformal, metrics
from sparsify.parts.calibrators import fit_temperature, fit_vector_scaling
from sparsify.tasks import Classification, Multilabel, Regression, Task
from sparsify.tasks.base import judged
from sparsify.timing import values_of

Stored = Mapping[str, onnx.TensorProto]
Tables = Mapping[str, Tensor]
EXACT = 1 + 1e-6
"""What a reach was rounded by when it was stored."""


def refit_head(model: onnx.ModelProto, samples: Samples) -> tuple[str, dict[str, float]]:
    """Fit the calibration head to the file's own outputs for the held-out data and store it, in place.

    Returns:
        What was done, and figures of the held-out data before and after: NLL and ECE, or of intervals coverage and width.
    """
    stored = {
        item.name.rpartition("calibration.")[2]: item for item in model.graph.initializer if "calibration." in item.name
    }
    if not stored:
        return "none that can be fitted again", {}
    if samples.labels is None:
        return "kept: no labels to fit it on", {}
    task, found = _meaning(samples, stored), _tables(model, samples)
    targets = torch.from_numpy(np.asarray(samples.labels))[: len(found[samples.main])]
    figures = _figures(task, found, targets, "before")
    try:
        fitted, text = _fitted(task, stored, samples, found, targets)
    except ValueError as error:
        return f"kept: {error}", figures
    for name, value in fitted.items():
        item = stored[name]
        item.CopyFrom(numpy_helper.from_array(value.float().numpy().reshape(tuple(item.dims)), item.name))
    return text, figures | _figures(task, _tables(model, samples), targets, "after")


def _meaning(samples: Samples, stored: Stored) -> Task:
    """The task of the samples, or the one whose head is stored."""
    if samples.task is not None:
        return samples.task
    labels = "temperature" in stored and list(stored["temperature"].dims) not in ([], [1])
    return Regression() if "reach" in stored else Multilabel() if labels else Classification()


def _fitted(
    task: Task, stored: Stored, samples: Samples, found: Tables, targets: Tensor
) -> tuple[dict[str, Tensor], str]:
    """Values of the head by name, and what to say of them.

    Raises:
        ValueError: If the samples do not determine them.
    """
    output = found[samples.main]
    if "reach" in stored:
        return {"reach": _reach(stored["reach"], samples, output, targets)}, "intervals fitted again"
    if "temperature" not in stored:
        scale, bias = fit_vector_scaling(*judged(task, output, targets))
        return {"scale": scale, "bias": bias}, "vector scaling fitted again"
    before = torch.from_numpy(numpy_helper.to_array(stored["temperature"]).astype(np.float64))
    if before.numel() == 1:
        after = fit_temperature(*judged(task, output, targets))
        return {"temperature": torch.tensor([after])}, (
            f"temperature fitted again: {float(before):.4f} before, {after:.4f} after"
        )
    rows, answers = task.scores(output), task.answers(targets)
    assert rows is not None and answers is not None
    columns, kept = before.clone(), list[str]()
    for label in range(len(columns)):
        mine = slice(label, None, len(columns))
        try:
            columns[label] = fit_temperature(rows[mine], answers[mine])
        except ValueError:
            kept.append(str(label))
    if len(kept) == len(columns):
        raise ValueError("the samples determine the temperature of no label")
    left = f", but for {', '.join(kept)}" if kept else ""
    return {"temperature": columns}, f"temperatures of {len(columns)} labels fitted again{left}"


def _reach(stored: onnx.TensorProto, samples: Samples, output: Tensor, targets: Tensor) -> Tensor:
    """The reach that holds as many of the targets for the file as the stored one does for the program."""
    wanted = samples.wanted[samples.main]
    ours = torch.from_numpy(wanted.table(wanted.values)).double()
    truth = targets.double().reshape(output.shape)
    before = torch.from_numpy(numpy_helper.to_array(stored).astype(np.float64))
    errors = [(value - truth).abs() for value in (ours, output)]
    if before.numel() == 1 and truth[:1].numel() > 1:
        errors = [error.flatten(1).amax(1) for error in errors]
    first, second = (error.reshape(len(error), -1) for error in errors)
    held = (first <= before.reshape(-1) * EXACT).sum(0)
    if not bool(held.all()):
        raise ValueError("the program's intervals hold none of the held-out targets of an output")
    return second.sort(0).values.gather(0, held[None] - 1)[0]


def _tables(model: onnx.ModelProto, samples: Samples) -> Tables:
    """Outputs of a file for the held-out samples, float64 [N, ...]."""
    found = values_of(model, samples.held_out)
    names = (samples.main, "probabilities", "lower", "upper")
    return {
        name: torch.from_numpy(samples.wanted[name].table(found[name]).astype(np.float64))
        for name in names
        if name in samples.wanted
    }


def _figures(task: Task, found: Tables, targets: Tensor, when: str) -> dict[str, float]:
    if "lower" in found:
        low, high = found["lower"], found["upper"]
        held = conformal.coverage(targets.double().reshape(low.shape), low, high)
        return {f"coverage_{when}": held, f"width_{when}": conformal.width(low, high)}
    table, answers = judged(task, found["probabilities"], targets)
    if task.link == "sigmoid":
        table = torch.stack([1 - table[:, 1], table[:, 1]], dim=1)
    return {f"nll_{when}": metrics.nll(table, answers), f"ece_{when}": metrics.ece(table, answers)}
