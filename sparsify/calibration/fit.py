"""Fit a program's calibration head. Only the head's buffers change.

Fitting never fails a run: where the held-out samples do not determine the head, it stays at the identity, and the log says why.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.errors import TrainingError
from sparsify.ir import Program
from sparsify.parts import metrics
from sparsify.parts.calibrators import NotIdentifiableError, fit_temperature, fit_vector_scaling
from sparsify.parts.samples import Samples

FEW = 5
"""Held-out samples per class below which a fit is called rough."""


@dataclass(frozen=True)
class CalibrationLog:
    """What was fitted, on how many held-out samples, and what it did to them.

    Attributes:
        kind: ``temperature`` or ``vector``.
        temperature: of that kind; 1.0 where it could not be fitted.
        note: why the head stayed at the identity, or why the fit deserves little trust; None: neither.
    """

    kind: str
    samples: int
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float
    temperature: float | None
    note: str | None = None

    def to_dict(self) -> dict[str, object]:
        """JSON-able."""
        return dataclasses.asdict(self)


def fit(program: Program, held_out: Samples, *, batch_size: int = 256) -> CalibrationLog:
    """Fit the head that `attach-calibration-head` inserted.

    Args:
        program: with an output ``probabilities``.
        held_out: neither training nor test data.
        batch_size: of the evaluation.

    Returns:
        What was done. A head that the samples do not determine is the identity then (temperature 1; scale 1 and bias 0), with a note.

    Raises:
        TrainingError: If there is no head, or the program's logits hold NaN or +infinity.
    """
    buffers = {name for name, _ in program.named_buffers()}
    kind = next(
        (k for k, b in (("temperature", "temperature"), ("vector", "scale")) if f"calibration.{b}" in buffers), None
    )
    if kind is None:
        raise TrainingError(f"{program.name!r} has no calibration head. Apply attach-calibration-head first.")
    labels = held_out.targets.cpu()
    logits = evaluate(program, held_out, batch_size=batch_size)["logits"]
    if bool((logits.isnan() | (logits == torch.inf)).any()):
        raise TrainingError(
            f"{program.name!r} returns NaN or infinite logits for held-out samples, so there is nothing to calibrate. Lower lr, or check "
            f"the batch norms' running statistics."
        )
    fitted, note = _fitted(kind, logits, labels)
    for name, value in fitted.items():
        program.tensor(f"calibration.{name}").copy_(value)
    after = logits / fitted["temperature"] if kind == "temperature" else logits * fitted["scale"] + fitted["bias"]
    tables = {"before": logits.softmax(1), "after": after.softmax(1)}
    return CalibrationLog(
        kind=kind,
        samples=len(labels),
        **{f"nll_{when}": metrics.nll(table, labels) for when, table in tables.items()},
        **{f"ece_{when}": metrics.ece(table, labels) for when, table in tables.items()},
        temperature=float(fitted["temperature"]) if kind == "temperature" else None,
        note=note,
    )


def _fitted(kind: str, logits: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], str | None]:
    """Values of the head's buffers, and a note where the samples say little or nothing about them."""
    classes = logits.shape[1]
    ones, zeros = torch.ones(classes).double(), torch.zeros(classes).double()
    identity = {"temperature": torch.ones(()).double()} if kind == "temperature" else {"scale": ones, "bias": zeros}
    found: dict[str, Tensor]
    try:
        if kind == "temperature":
            found = {"temperature": torch.tensor(fit_temperature(logits, labels), dtype=torch.float64)}
        else:
            scale, bias = fit_vector_scaling(logits, labels)
            found = {"scale": scale, "bias": bias}
    except ValueError as error:
        return identity, f"not fitted, so the probabilities are those of the model as trained: {error}"
    if not all(bool(value.float().isfinite().all()) for value in found.values()):
        return identity, "not fitted, so the probabilities are those of the model as trained: the optimum is not finite"
    if kind == "vector":
        try:
            fit_temperature(logits, labels)
        except NotIdentifiableError as error:
            return found, f"held only by its pull towards 1 and 0: {error}"
    if len(labels) < FEW * classes:
        return found, f"a rough estimate, from {len(labels)} held-out samples of {classes} classes"
    return found, None


def evaluate(program: Program, samples: Samples, *, batch_size: int = 256) -> dict[str, Tensor]:
    """Outputs of the eval phase over all ``samples``, in batches, float64 on the CPU."""
    parts: dict[str, list[Tensor]] = {}
    device = next(program.parameters()).device
    with torch.no_grad():
        for rows in torch.arange(len(samples)).split(batch_size):
            for name, value in program.outputs(samples.batch(rows)[0].to(device)).items():
                parts.setdefault(name, []).append(value.cpu().double())
    return {name: torch.cat(values) for name, values in parts.items()}
