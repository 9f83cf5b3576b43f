"""The calibration head of an int8 file, fitted again to the file's own logits."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from sparsify.exporters.int8_samples import Samples
from sparsify.parts import metrics
from sparsify.parts.calibrators import fit_temperature, fit_vector_scaling
from sparsify.timing import Array, values_of


def refit_head(model: onnx.ModelProto, samples: Samples) -> tuple[str, dict[str, float]]:
    """Fit the calibration head to the file's own logits on the held-out data and store it, in place.

    Returns:
        What was done, and NLL and ECE on the held-out data before and after.
    """
    stored = {
        item.name.rpartition("calibration.")[2]: item for item in model.graph.initializer if "calibration." in item.name
    }
    if not stored:
        return "none that can be fitted again", {}
    if samples.labels is None:
        return "kept: no labels to fit it on", {}
    found = _tables(model, samples)
    logits = torch.from_numpy(found["logits"])
    labels = torch.from_numpy(np.asarray(samples.labels))[: len(logits)]
    figures = _figures(found["probabilities"], labels, "before")
    try:
        if "temperature" in stored:
            before = float(numpy_helper.to_array(stored["temperature"]))
            fitted = {"temperature": np.float32(fit_temperature(logits, labels))}
            text = f"temperature fitted again: {before:.4f} before, {float(fitted['temperature']):.4f} after"
        else:
            scale, bias = fit_vector_scaling(logits, labels)
            fitted = {"scale": scale.float().numpy(), "bias": bias.float().numpy()}
            text = "vector scaling fitted again"
    except ValueError as error:
        return f"kept: {error}", figures
    for name, value in fitted.items():
        item = stored[name]
        item.CopyFrom(numpy_helper.from_array(np.asarray(value).reshape(tuple(item.dims)), item.name))
    return text, figures | _figures(_tables(model, samples)["probabilities"], labels, "after")


def _tables(model: onnx.ModelProto, samples: Samples) -> dict[str, Array]:
    """Logits and probabilities of a file for the held-out samples, float64 [N, K]."""
    found = values_of(model, samples.held_out)
    return {name: np.concatenate(found[name]).astype(np.float64) for name in ("logits", "probabilities")}


def _figures(probabilities: Array, labels: torch.Tensor, when: str) -> dict[str, float]:
    table = torch.from_numpy(probabilities)
    return {f"nll_{when}": metrics.nll(table, labels), f"ece_{when}": metrics.ece(table, labels)}
