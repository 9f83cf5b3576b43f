"""Fit a program's calibration head. Touches the head's buffers alone."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.errors import TrainingError
from sparsify.ir import Program
from sparsify.parts import metrics
from sparsify.parts.calibrators import fit_temperature, fit_vector_scaling
from sparsify.parts.samples import Samples


@dataclass(frozen=True)
class CalibrationLog:
    """What was fitted, on how many held-out samples, and what it did to them."""

    kind: str
    samples: int
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float
    temperature: float | None

    def to_dict(self) -> dict[str, object]:
        """JSON-able."""
        return dataclasses.asdict(self)


def fit(program: Program, held_out: Samples, *, batch_size: int = 256) -> CalibrationLog:
    """Fit the head that `attach-calibration-head` inserted.

    Args:
        program: with an output ``probabilities``.
        held_out: neither training nor test data.
        batch_size: of the evaluation.

    Raises:
        TrainingError: If there is no head, or the optimum is not finite.
    """
    buffers = {name for name, _ in program.named_buffers()}
    kind = next(
        (k for k, b in (("temperature", "temperature"), ("vector", "scale")) if f"calibration.{b}" in buffers), None
    )
    if kind is None:
        raise TrainingError(f"{program.name!r} has no calibration head. Apply attach-calibration-head first.")
    y = held_out.labels
    logits = evaluate(program, held_out, batch_size=batch_size)["logits"]
    temperature = None
    try:
        if kind == "temperature":
            temperature = fit_temperature(logits, y.cpu())
            program.tensor("calibration.temperature").fill_(temperature)
            after = (logits / temperature).softmax(1)
        else:
            scale, bias = fit_vector_scaling(logits, y.cpu())
            program.tensor("calibration.scale").copy_(scale)
            program.tensor("calibration.bias").copy_(bias)
            after = (logits * scale + bias).softmax(1)
    except ValueError as error:
        raise TrainingError(
            f"calibration of {program.name!r} on {len(y)} held-out samples: {error}. Hold out more."
        ) from error
    before, labels = logits.softmax(1), y.cpu()
    return CalibrationLog(
        kind=kind,
        samples=len(y),
        nll_before=metrics.nll(before, labels),
        nll_after=metrics.nll(after, labels),
        ece_before=metrics.ece(before, labels),
        ece_after=metrics.ece(after, labels),
        temperature=temperature,
    )


def evaluate(program: Program, samples: Samples, *, batch_size: int = 256) -> dict[str, Tensor]:
    """Outputs of the eval phase over all ``samples``, in batches, float64 on the CPU."""
    parts: dict[str, list[Tensor]] = {}
    device = next(program.parameters()).device
    with torch.no_grad():
        for rows in torch.arange(len(samples)).split(batch_size):
            for name, value in program.outputs(samples.batch(rows)[0].to(device)).items():
                parts.setdefault(name, []).append(value.cpu().double())
    return {name: torch.cat(values) for name, values in parts.items()}
