"""The operators of spiking networks: layers of neurons over several steps of time, and the steps of a value.

The steps lie one after another in the first dimension, [steps * N, ...], so that every other layer of a spiking network sees them as a
larger batch. The graph thus has one node per layer of neurons, however many steps there are. torch's exporters trace through these
functions, so that a file has the arithmetic of each step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsify.parts.neurons import Neuron


def lif(
    current: Tensor,
    leak: Tensor,
    threshold: Tensor,
    steps: int,
    repeated: bool,
    reset: str = "soft",
    surrogate: str = "atan",
    slope: float | None = None,
    decay_input: bool = False,
    detach_reset: bool = False,
    through_time: bool = True,
) -> Tensor:
    """Compute the spikes of a layer of leaky integrate-and-fire neurons in every step. The potential is 0 before the first.

    Args:
        current: [steps * N, ...], all samples of the first step, then all of the second, and so on; with ``repeated`` [N, ...], which
            every step receives.
        leak: [], share of the potential that stays from step to step.
        threshold: [], potential from which a neuron fires.
        steps: at least 1.
        repeated: whether ``current`` is the same in every step.
        reset, surrogate, slope, decay_input, detach_reset, through_time: as in `sparsify.parts.neurons.Neuron`.

    Returns:
        Spikes, 0 or 1: [steps * N, ...].
    """
    neuron = Neuron(reset, surrogate, slope, decay_input, detach_reset, through_time)
    made: Tensor = _Fired.apply(current, leak, threshold, steps, repeated, neuron)
    return made


def lif_step(
    current: Tensor,
    potential: Tensor,
    leak: Tensor,
    threshold: Tensor,
    reset: str = "soft",
    surrogate: str = "atan",
    slope: float | None = None,
    decay_input: bool = False,
    detach_reset: bool = False,
    through_time: bool = True,
) -> tuple[Tensor, Tensor]:
    """Compute one step of a layer of neurons: spikes, and the potential after it; all [N, ...]. The arguments are those of `lif`."""
    neuron = Neuron(reset, surrogate, slope, decay_input, detach_reset, through_time)
    made: tuple[Tensor, Tensor] = _Step.apply(current, potential, leak, threshold, neuron)
    return made


def repeat_steps(value: Tensor, steps: int) -> Tensor:
    """Repeat a value [N, ...] that is the same in every step: [steps * N, ...]."""
    return value.repeat(steps, *(1,) * (value.ndim - 1))


def mean_of_steps(value: Tensor, steps: int) -> Tensor:
    """Average a value [steps * N, ...] over the steps: [N, ...]."""
    return value.unflatten(0, (steps, -1)).mean(0)


def steps_of(size: int, steps: int) -> int:
    """Return the size of a batch that holds all steps."""
    return size * steps


NEURON_OPERATORS = {
    lif: "neuron", lif_step: "neuron", repeat_steps: "steps", mean_of_steps: "steps", steps_of: "steps"
}  # fmt: skip
"""Kind of operator by function."""


class _Fired(torch.autograd.Function):
    """Computes the steps again on the way back, so that nothing but the currents is kept between the passes."""

    @staticmethod
    def forward(
        ctx: Any, current: Tensor, leak: Tensor, threshold: Tensor, steps: int, repeated: bool, neuron: Neuron
    ) -> Tensor:
        ctx.save_for_backward(current, leak, threshold)
        ctx.options = steps, repeated, neuron
        return _fired(current, leak, threshold, steps, repeated, neuron)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[:3]
        with torch.enable_grad():
            given = [x.detach().requires_grad_(need) for x, need in zip(ctx.saved_tensors, needed, strict=True)]
            made, wanted = _fired(*given, *ctx.options), [x for x in given if x.requires_grad]
            found = iter(torch.autograd.grad(made, wanted, grad_outputs, allow_unused=True))
        return (*(next(found) if need else None for need in needed), None, None, None)


class _Step(torch.autograd.Function):
    """Computes the step again on the way back: a file then has the step function, and not its surrogate."""

    @staticmethod
    def forward(
        ctx: Any, current: Tensor, potential: Tensor, leak: Tensor, threshold: Tensor, neuron: Neuron
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(current, potential, leak, threshold)
        ctx.neuron = neuron
        return neuron.step(current, potential, leak, threshold)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[:4]
        with torch.enable_grad():
            given = [x.detach().requires_grad_(need) for x, need in zip(ctx.saved_tensors, needed, strict=True)]
            wanted = [x for x in given if x.requires_grad]
            found = iter(torch.autograd.grad(ctx.neuron.step(*given), wanted, grad_outputs, allow_unused=True))
        return (*(next(found) if need else None for need in needed), None)


def _fired(current: Tensor, leak: Tensor, threshold: Tensor, steps: int, repeated: bool, neuron: Neuron) -> Tensor:
    currents = [current] * steps if repeated else list(current.unflatten(0, (steps, -1)).unbind())
    return torch.cat(neuron.fired(currents, leak, threshold))
