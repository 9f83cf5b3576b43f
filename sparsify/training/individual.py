"""Adds a method's individual-calibration error to the loss: keeps the leave-one-out parameters of the last layer up to date."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparsify.errors import PassError, TrainingError
from sparsify.ir import Program, classifier_of
from sparsify.ir.evaluation import outputs_of
from sparsify.ir.features import with_features
from sparsify.methods import Method
from sparsify.parts.individual import IndividualCalibration, stratified
from sparsify.parts.jackknife import Jackknife
from sparsify.parts.samples import Samples, Subset
from sparsify.parts.trees import moved, rows_of
from sparsify.training.counting import Extra
from sparsify.training.mechanism import Mechanism
from sparsify.training.probe import Closure

Calibration = Callable[[], tuple[Any, Tensor]]
"""Returns inputs and class numbers [n] of samples that are not trained on, on the device of the program."""
_SALT = 0x0CA11B


class Individual(Mechanism):
    """Joins the loss of a batch with its individual-calibration error.

    Args:
        method: a method with such an error.
        program: the program that is trained.
        calibration: returns the samples set aside; it is called at each refresh.
        counts: its ``forwards`` are incremented, once for each refresh and, as a teacher's, once per step and for each probe.

    Raises:
        TrainingError: If there are no samples set aside, or the program has no last layer.
    """

    key = "individual"

    def __init__(
        self, method: Method, program: Program, calibration: Calibration | None, counts: dict[str, int]
    ) -> None:
        assert method.individual is not None
        if calibration is None:
            raise TrainingError(
                f"method {method.name!r} needs samples that are not trained on: give sparsify.attach calibration, a function that returns "
                f"their inputs and class numbers."
            )
        self._method, self._plan, self._program = method.name, method.individual, program
        self._calibration, self._counts = calibration, counts
        try:
            layer = classifier_of(with_features(program)[0])
        except PassError as error:
            raise TrainingError(f"method {method.name!r} needs the features of the last layer. {error}") from error
        classes, features = layer.weight.shape
        if (most := self._plan.fits(features, classes)) < self._plan.samples:
            raise TrainingError(
                f"method {method.name!r} would solve a system for {self._plan.samples} samples of {classes} classes and {features} "
                f"features, which is too large. Set samples to at most {most}."
            )
        self._found: Jackknife | None = None
        self._refreshed, self._step, self._error = 0, 1, 0.0
        self._view: tuple[str, Program, str] | None = None
        self._extra = Extra(counts)

    def link(self, step: int) -> None:
        self._step, self._view = step, None

    def join(self, loss: Tensor, output: Any, target: Any, inputs: Any) -> Tensor:
        """Add the error of a batch to its loss; this takes a forward pass in eval mode.

        Args:
            loss: loss of the method, a scalar.
            output: logits [N, K], or [N, K + 1] with an unknown class, which is left out.
            target: not read.
            inputs: inputs of the batch; None if the loop did not give them.

        Raises:
            TrainingError: If there are no inputs, or the samples set aside do not fit.
        """
        del target
        if inputs is None:
            raise TrainingError(
                f"method {self._method!r} reads the features of a batch: call trainer.loss(program(x), y, inputs=x)."
            )
        if self._found is None or self._step - self._refreshed >= self._plan.refresh:
            self._refresh()
        assert self._found is not None
        features, weight, bias = self._features(inputs)
        self._extra.count(forwards=1)
        error = self._plan.error(output[:, : len(weight)], self._found, features, weight, bias)
        self._error = float(error.detach())
        return self._plan.joined(loss, error)

    def _features(self, inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return features [N, d] of inputs, weight [K, d] and bias [K] now."""
        code = self._program.phases["eval"].code
        if self._view is None or self._view[0] != code:  # a pass has rewritten the graph
            self._view = (code, *with_features(self._program))
        _, view, name = self._view
        with torch.no_grad():
            found, layer = outputs_of(view, inputs)[name], classifier_of(view)
        return found, layer.weight, layer.bias

    def _refresh(self) -> None:
        """Compute the leave-one-out parameters of the present last layer."""
        inputs, labels = self._calibration()
        features, weight, bias = self._features(inputs)
        if (
            labels.shape != (len(features),)
            or len(labels) < 2
            or not 0 <= int(labels.min()) <= int(labels.max()) < len(weight)
        ):
            raise TrainingError(
                f"calibration should return inputs and class numbers [n] from 0 to {len(weight) - 1} of at least 2 samples, found "
                f"{rows_of(inputs)} inputs and labels {list(labels.shape)}."
            )
        if len(labels) > (most := self._plan.fits(*weight.shape[::-1])):
            raise TrainingError(
                f"calibration returned {len(labels)} samples, and method {self._method!r} takes at most {most} here. Return fewer, or set "
                f"its option samples higher."
            )
        self._found, self._refreshed = self._plan.pieces(features, labels, weight, bias), self._step
        self._counts["forwards"] += 1

    def before_step(self, step: int, closure: Closure | None) -> None:
        self._extra.reset()

    def after_step(self, step: int, moved: bool) -> None:
        self._extra.reset()
        self._step = step + 1

    def readings(self) -> Mapping[str, float]:
        """Return ``individual_error``, the error of the last training batch."""
        return {"individual_error": self._error}

    def state_dict(self) -> dict[str, Any]:
        pieces = {} if self._found is None else {"shifts": self._found.shifts, "residuals": self._found.residuals}
        return {"pieces": pieces, "refreshed": self._refreshed, "error": self._error}

    def load_state_dict(self, state: Any) -> None:
        pieces = state["pieces"]
        self._found = Jackknife(pieces["shifts"], pieces["residuals"]) if pieces else None
        self._refreshed, self._error = int(state["refreshed"]), float(state["error"])


def individual_of(
    method: Method, program: Program, calibration: Calibration | None, counts: dict[str, int]
) -> Individual | None:
    """Return the mechanism of a method with such an error; None for another method.

    Raises:
        TrainingError: If a method has no use for ``calibration``, or needs it and it is missing.
    """
    if method.individual is not None:
        return Individual(method, program, calibration, counts)
    if calibration is not None:
        raise TrainingError(
            f"method {method.name!r} has no use for calibration. Leave it out, or wrap the method in one that reads it."
        )
    return None


def set_aside_count(plan: IndividualCalibration | None, samples: int) -> int:
    """Return how many of ``samples`` training samples a run sets aside: those of the plan, but at most a quarter."""
    return 0 if plan is None else min(plan.samples, samples // 4)


def set_aside(
    plan: IndividualCalibration | None, data: Samples, device: torch.device, *, seed: int
) -> tuple[Samples, Calibration | None]:
    """Split training samples into those that are trained on and a function that returns the others, drawn with the shares of all classes.

    Args:
        plan: of the method; None: all samples are trained on.
        data: the training samples, with class numbers.
        device: where inputs and labels are returned.
        seed: seed of the run.
    """
    if plan is None:
        return data, None
    generator = torch.Generator().manual_seed((seed + _SALT) % 2**63)
    rows = stratified(data.targets, set_aside_count(plan, len(data)), generator)
    kept = torch.ones(len(data), dtype=torch.bool)
    kept[rows] = False
    inputs, labels = data.batch(rows, seed=seed)
    held = (moved(inputs, device), labels.to(device))
    return Subset(data, kept.nonzero().squeeze(1)), lambda: held
