"""Corrections: gradients changed before the optimizer sees them, at the price of counted evaluations of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sparsify.arguments import checked_fields
from sparsify.errors import RecipeError

State = Any
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Evaluation:
    """Loss and gradients of one batch.

    Attributes:
        loss: a scalar.
        gradients: by parameter name, as an optimizer would get them: 0 where inactive or hidden by a random mask.
        dense: the same, but for inactive positions too, where the program has taps; under random masks divided by the chance of
            being visible, so that the mean over many evaluations is the gradient of a visible weight.
    """

    loss: Tensor
    gradients: dict[str, Tensor]
    dense: dict[str, Tensor]


class Batch(Protocol):
    """Labelled samples on which the model may be evaluated at any weights; every evaluation is counted."""

    def loss(self, at: Tensors | None = None) -> Tensor:
        """The loss at the parameter values ``at``, by name; those missing, or None, are the current ones. A forward pass."""
        ...

    def evaluate(self, at: Tensors | None = None) -> Evaluation:
        """Loss and gradients at ``at``. A forward and a backward pass."""
        ...


@dataclass(frozen=True)
class GradientView:
    """What a correction may see of a step.

    Attributes:
        step: counted from 1.
        epoch_steps: steps of an epoch, or None where the loop did not say.
        weights: current values by parameter name; not to be changed.
        masks: by weight name; True = active.
        gradients: raw gradients of the step.
        batch: of the step. Dropout and random masks are those of the step.
        sweep: other batches of the training data in random order, at most as many as asked for; None: an epoch of them.
    """

    step: int
    epoch_steps: int | None
    weights: Tensors
    masks: Tensors
    gradients: Tensors
    batch: Batch
    sweep: Callable[[int | None], Iterator[Batch]]


def _no_readings(state: State) -> Mapping[str, float]:
    del state
    return {}


@checked_fields(RecipeError)
@dataclass(frozen=True)
class Correction:
    """``init(weights) -> state`` and ``correct(view, state) -> (gradients, state)``.

    Attributes:
        init: the first state; state holds tensors, numbers, text, lists and dicts, so that a checkpoint can hold it.
        correct: new gradients by name; those left out stay. The trainer masks them.
        readings: figures of a state for the history of a run, by name.
        dense: the correction reads `Evaluation.dense`; the program gets taps.
    """

    init: Callable[[Tensors], State]
    correct: Callable[[GradientView, State], tuple[Tensors, State]]
    readings: Callable[[State], Mapping[str, float]] = _no_readings
    dense: bool = False


ROUNDING = 1e-6
"""Relative spread below which float32 losses and gradients differ only by rounding."""


def control_variate(gradient: Tensor, expected: Tensor, old: Tensor, coefficient: float) -> Tensor:
    """``gradient + coefficient * (expected - old)``: unbiased where ``expected`` is the mean of ``old`` over batches.

    Args:
        gradient: of a batch at the current weights, any shape.
        expected: the mean over batches of the gradient at old weights.
        old: that of this batch.
        coefficient: 0 changes nothing; 1 is SVRG.
    """
    return gradient + coefficient * (expected - old)


def loss_coefficient(new: Tensor, old: Tensor) -> float | None:
    """Cov(new, old) / Var(old) of the losses [n] of the same batches, or None where Var(old) is within rounding of 0.

    Raises:
        ValueError: If the two differ in length.
    """
    if new.shape != old.shape:
        raise ValueError(f"losses of the same batches are needed, found {tuple(new.shape)} and {tuple(old.shape)}")
    new, old = new.double(), old.double()
    deviation = old - old.mean()
    cross, square = float(((new - new.mean()) * deviation).sum()), float(deviation.square().sum())
    return _ratio(cross, square, float(old.mean()) ** 2, len(old))


def paired(pairs: State, new: Tensors, old: Tensors) -> State:
    """Take the gradients of one more batch at new and old weights into running means and co-moments, parameter by parameter.

    Args:
        pairs: ``{"count", "new", "old", "cross", "square"}``: how many batches, mean gradients by name, and the sums over batches
            of ``<new - mean, old - mean>`` and ``|old - mean|^2`` by name; ``{}`` at the start.
        new, old: gradients by name.
    """
    count = pairs.get("count", 0) + 1
    found: dict[str, Any] = {"count": count, "new": {}, "old": {}, "cross": {}, "square": {}}
    for name, y in old.items():
        x = new[name]
        mean_x, mean_y, cross, square = (
            pairs[key][name] if count > 1 else 0.0 for key in ("new", "old", "cross", "square")
        )
        later = mean_y + (y - mean_y) / count
        found["new"][name], found["old"][name] = mean_x + (x - mean_x) / count, later
        found["cross"][name] = cross + float(((x - mean_x) * (y - later)).sum())
        found["square"][name] = square + float(((y - mean_y) * (y - later)).sum())
    return found


def gradient_coefficients(pairs: State, *, shared: bool) -> dict[str, float | None]:
    """tr Cov(new, old) / tr Cov(old) of `paired`: by name, or under the empty name one for all of them.

    It minimises the variance of `control_variate` over what shares it. None where the divisor is within rounding of 0.
    """
    if not pairs:
        return {}
    size = {name: float(value.square().sum()) for name, value in pairs["old"].items()}
    if shared:
        cross, square = sum(pairs["cross"].values()), sum(pairs["square"].values())
        return {"": _ratio(cross, square, sum(size.values()), pairs["count"])}
    return {n: _ratio(pairs["cross"][n], pairs["square"][n], size[n], pairs["count"]) for n in size}


def _ratio(cross: float, square: float, size: float, count: int) -> float | None:
    """The quotient of two sums over ``count`` batches, where the divisor is more than what rounding makes of ``size``."""
    return None if count < 2 or square <= (count - 1) * ROUNDING**2 * size else cross / square


@dataclass(frozen=True)
class Comparison:
    """How batches at new and old weights are compared to find the coefficient of `control_variate`.

    Attributes:
        old: a batch at old weights; only as much of it as is needed.
        add: one more pair into what was found so far, ``{}`` at the start.
        solve: coefficients by parameter name, or under the empty name one for all; None where there is no telling.
    """

    old: Callable[[Batch, Tensors], Evaluation]
    add: Callable[[State, Evaluation, Evaluation], State]
    solve: Callable[[State], dict[str, float | None]]


def _losses(pairs: State, new: Evaluation, old: Evaluation) -> State:
    return {"new": [*pairs.get("new", []), float(new.loss)], "old": [*pairs.get("old", []), float(old.loss)]}


def _gradients(*, shared: bool) -> Comparison:
    return Comparison(
        old=lambda batch, at: batch.evaluate(at),
        add=lambda pairs, new, old: paired(pairs, new.gradients, old.gradients),
        solve=lambda pairs: gradient_coefficients(pairs, shared=shared),
    )


COMPARISONS: dict[str, Comparison] = {
    "loss": Comparison(
        old=lambda batch, at: Evaluation(batch.loss(at), {}, {}),
        add=_losses,
        solve=lambda pairs: (
            {"": loss_coefficient(torch.tensor(pairs["new"]), torch.tensor(pairs["old"]))} if pairs else {}
        ),
    ),
    "gradient": _gradients(shared=True),
    "layer": _gradients(shared=False),
}
