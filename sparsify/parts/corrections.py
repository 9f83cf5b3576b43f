"""Corrections: they change gradients before the optimizer sees them, and pay with counted evaluations of the model."""

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
        gradients: by parameter name, as an optimizer would get them: 0 where a weight is inactive or hidden by a random mask.
        dense: by parameter name, the gradients with inactive positions included; only for weights with a tap. Each is computed when it is
            read. Under random masks they are divided by the probability of being visible, so that their mean over many evaluations is the
            gradient of a visible weight.
    """

    loss: Tensor
    gradients: dict[str, Tensor]
    dense: Tensors


class Batch(Protocol):
    """Labelled samples on which the model can be evaluated at any weights. Every evaluation is counted."""

    def loss(self, at: Tensors | None = None) -> Tensor:
        """Compute the loss with the parameter values ``at``, by name; parameters not in it keep their current values. One forward pass."""
        ...

    def evaluate(self, at: Tensors | None = None) -> Evaluation:
        """Compute loss and gradients at ``at``. One forward and one backward pass."""
        ...


@dataclass(frozen=True)
class GradientView:
    """What a correction may see of one step. All tensors have the shapes of the dense weights, however a run stores the weights.

    Attributes:
        step: optimizer step, counted from 1.
        epoch_steps: steps per epoch, or None if the loop did not say.
        weights: current values by parameter name; read only.
        masks: bool masks by weight name; True = active.
        gradients: the uncorrected gradients of the step, by parameter name.
        batch: the batch of the step, evaluated with the same dropout and random masks as the step.
        sweep: returns at most the given number of other batches of the training data, in random order; None means one epoch.
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
        init: returns the first state. A state holds only tensors, numbers, text, lists and dicts, so that a checkpoint can store it.
        correct: returns new gradients by name, and the next state. Gradients it leaves out stay unchanged. The trainer masks them.
        readings: returns figures of a state for the history of a run, by name.
        dense: whether the correction reads `Evaluation.dense`; if so, the program gets taps.
        needs: ``epoch_steps``, ``sweep`` or both, if the correction reads them; `sparsify.attach` then refuses a loop without them.
    """

    init: Callable[[Tensors], State]
    correct: Callable[[GradientView, State], tuple[Tensors, State]]
    readings: Callable[[State], Mapping[str, float]] = _no_readings
    dense: bool = False
    needs: tuple[str, ...] = ()


ROUNDING = 1e-6
"""Relative spread below which float32 losses and gradients differ only by rounding."""


def control_variate(gradient: Tensor, expected: Tensor, old: Tensor, coefficient: float) -> Tensor:
    """Compute ``gradient + coefficient * (expected - old)``, which is unbiased if ``expected`` is the mean of ``old`` over batches.

    Args:
        gradient: gradient of a batch at the current weights, any shape.
        expected: mean over batches of the gradient at old weights, of the same shape.
        old: gradient of this batch at the old weights, of the same shape.
        coefficient: usually in [0, 1]; 0 changes nothing, and 1 is SVRG.
    """
    return gradient + coefficient * (expected - old)


def loss_coefficient(new: Tensor, old: Tensor) -> float | None:
    """Compute Cov(new, old) / Var(old) of the losses [n] of the same batches; None if Var(old) is 0 within rounding.

    Raises:
        ValueError: If the two differ in length.
    """
    if new.shape != old.shape:
        raise ValueError(f"expected losses of the same batches, found shapes {tuple(new.shape)} and {tuple(old.shape)}")
    new, old = new.double(), old.double()
    deviation = old - old.mean()
    cross, square = float(((new - new.mean()) * deviation).sum()), float(deviation.square().sum())
    return _ratio(cross, square, float(old.mean()) ** 2, len(old))


def paired(pairs: State, new: Tensors, old: Tensors) -> State:
    """Add the gradients of one more batch, at new and old weights, to running means and co-moments of each parameter.

    Args:
        pairs: ``{"count", "new", "old", "cross", "square"}``: the number of batches; the mean gradients by name; and by name the sums
            over batches of ``<new - mean, old - mean>`` and ``|old - mean|^2``. ``{}`` at the start.
        new, old: gradients of the batch at new and at old weights, by parameter name.
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
    """Compute tr Cov(new, old) / tr Cov(old) from what `paired` collected.

    The coefficient minimises the variance of `control_variate` over the parameters that share it. Returns one coefficient per parameter
    name, or with ``shared`` a single one under the empty name. A coefficient is None if its divisor is 0 within rounding.
    """
    if not pairs:
        return {}
    size = {name: float(value.square().sum()) for name, value in pairs["old"].items()}
    if shared:
        cross, square = sum(pairs["cross"].values()), sum(pairs["square"].values())
        return {"": _ratio(cross, square, sum(size.values()), pairs["count"])}
    return {n: _ratio(pairs["cross"][n], pairs["square"][n], size[n], pairs["count"]) for n in size}


def _ratio(cross: float, square: float, size: float, count: int) -> float | None:
    """Return the quotient of two sums over ``count`` batches; None if the rounding of ``size`` could explain the whole divisor."""
    return None if count < 2 or square <= (count - 1) * ROUNDING**2 * size else cross / square


@dataclass(frozen=True)
class Comparison:
    """How batches at new and old weights are compared to find the coefficient of `control_variate`.

    Attributes:
        old: evaluates a batch at old weights, with no more passes than the comparison needs.
        add: adds one pair of evaluations to those collected so far, ``{}`` at the start.
        solve: returns coefficients by parameter name, or a single one under the empty name; None where the data do not determine it.
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
