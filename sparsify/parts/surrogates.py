"""Surrogates of the step function: smooth functions whose derivative stands for that of a spike in the backward pass.

A neuron fires where its potential is not below its threshold, x = u - threshold >= 0. The derivative of that step is 0 almost everywhere,
so training uses the derivative of a smooth function, the surrogate. A surrogate is written with operators that autograd knows, so that
the form of `fire` keeps its gradient through torch.fx and torch.export; an ``autograd.Function`` would lose it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.errors import RecipeError
from sparsify.registry import Registry


@dataclass(frozen=True)
class Surrogate:
    """A smooth function that takes the place of the step function in the backward pass.

    Attributes:
        name: the name in options.
        slope: the usual slope. A larger slope makes the derivative narrower.
        soft: gives its values from x, floating point of any shape, and a slope above 0. Its gradient by autograd is ``derivative``.
        derivative: gives its derivative from the same arguments, in closed form.
    """

    name: str
    slope: float
    soft: Callable[[Tensor, float], Tensor]
    derivative: Callable[[Tensor, float], Tensor]


def _atan(x: Tensor, slope: float) -> Tensor:
    return torch.atan(math.pi / 2 * slope * x) / math.pi + 0.5


def _atan_derivative(x: Tensor, slope: float) -> Tensor:
    return slope / (2 * (1 + (math.pi / 2 * slope * x) ** 2))


def _sigmoid(x: Tensor, slope: float) -> Tensor:
    return torch.sigmoid(slope * x)


def _sigmoid_derivative(x: Tensor, slope: float) -> Tensor:
    value = torch.sigmoid(slope * x)
    return slope * value * (1 - value)


def _fast_sigmoid(x: Tensor, slope: float) -> Tensor:
    return x / (1 + slope * x.abs())


def _fast_sigmoid_derivative(x: Tensor, slope: float) -> Tensor:
    return 1 / (1 + slope * x.abs()) ** 2


def _gaussian(x: Tensor, slope: float) -> Tensor:
    return torch.erf(slope * x) / 2 + 0.5


def _gaussian_derivative(x: Tensor, slope: float) -> Tensor:
    return slope / math.sqrt(math.pi) * torch.exp(-((slope * x) ** 2))


def _triangle(x: Tensor, slope: float) -> Tensor:
    near = x.clamp(-1 / slope, 1 / slope)
    return slope * near - slope**2 / 2 * near * near.abs() + 0.5


def _triangle_derivative(x: Tensor, slope: float) -> Tensor:
    return slope * (1 - slope * x.abs()).clamp_min(0)


def _rectangle(x: Tensor, slope: float) -> Tensor:
    return slope * x.clamp(-0.5 / slope, 0.5 / slope) + 0.5


def _rectangle_derivative(x: Tensor, slope: float) -> Tensor:
    return slope * (x.abs() <= 0.5 / slope).to(x.dtype)


def _straight_through(x: Tensor, slope: float) -> Tensor:
    return slope * x


def _straight_through_derivative(x: Tensor, slope: float) -> Tensor:
    return torch.full_like(x, slope)


_SURROGATES = (
    Surrogate("atan", 2.0, _atan, _atan_derivative),
    Surrogate("sigmoid", 4.0, _sigmoid, _sigmoid_derivative),
    Surrogate("fast-sigmoid", 25.0, _fast_sigmoid, _fast_sigmoid_derivative),
    Surrogate("gaussian", 2.0, _gaussian, _gaussian_derivative),
    Surrogate("triangle", 1.0, _triangle, _triangle_derivative),
    Surrogate("rectangle", 1.0, _rectangle, _rectangle_derivative),
    Surrogate("straight-through", 1.0, _straight_through, _straight_through_derivative),
)
SURROGATES: Registry[Surrogate] = Registry("surrogate", RecipeError, {found.name: found for found in _SURROGATES})
"""The surrogates by name, with their derivatives for a slope a, their usual slopes, and where these come from.

| name | derivative | a | source |
| --- | --- | --- | --- |
| ``atan`` | a / (2 (1 + (π a x / 2)²)), for a = 2: 1 / (1 + π² x²) | 2 | Fang et al. 2021, arXiv:2007.05785; as in snntorch |
| ``sigmoid`` | a s (1 - s), s = 1 / (1 + exp(-a x)) | 4 | spikingjelly; snntorch takes a = 25 |
| ``fast-sigmoid`` | 1 / (1 + a abs(x))² | 25 | Zenke and Ganguli 2018, arXiv:1705.11146; a as in snntorch |
| ``gaussian`` | a / sqrt(π) exp(-a² x²) | 2 | spikingjelly (``Erf``) |
| ``triangle`` | a max(0, 1 - a abs(x)) | 1 | piecewise quadratic: SLTT, Meng et al. 2023, arXiv:2302.14311 |
| ``rectangle`` | a where abs(x) <= 1 / (2 a), else 0 | 1 | Wu et al. 2018 (STBP), arXiv:1706.02609 |
| ``straight-through`` | a | 1 | Bengio et al. 2013, arXiv:1308.3432 |
"""


def step(x: Tensor) -> Tensor:
    """Return 1 where ``x >= 0`` and 0 elsewhere, also where it is NaN: the dtype and shape of ``x``, without a gradient."""
    return (x >= 0).to(x.dtype)


def fire(x: Tensor, surrogate: str = "atan", slope: float | None = None) -> Tensor:
    """Return exactly 0 or 1, as `step` does, with the gradient of a surrogate.

    The order of the operations matters: ``(hard + soft) - soft.detach()`` would not be exactly 0 or 1.

    Args:
        x: potential minus threshold, floating point of any shape, finite.
        surrogate: a name of `SURROGATES`.
        slope: above 0; the usual slope of the surrogate by default.

    Returns:
        A tensor of the dtype and shape of ``x``. The gradient for ``x`` is the incoming one times the derivative of the surrogate at ``x``.

    Raises:
        RecipeError: If there is no surrogate of that name, or the slope is not a finite number above 0.

    Examples:
        >>> import torch
        >>> from sparsify.parts.surrogates import fire
        >>> x = torch.tensor([-0.5, 0.0, 0.5], requires_grad=True)
        >>> spikes = fire(x, "triangle")
        >>> spikes.detach()
        tensor([0., 1., 1.])
        >>> spikes.sum().backward()
        >>> x.grad
        tensor([0.5000, 1.0000, 0.5000])
    """
    found = SURROGATES.find(surrogate)
    chosen = found.slope if slope is None else slope
    if not 0 < chosen < math.inf:
        raise RecipeError(
            f"the slope of a surrogate should be a finite number above 0, found {slope!r} for {surrogate!r}. Its usual slope is "
            f"{found.slope:g}."
        )
    soft = found.soft(x, chosen)
    return step(x) + (soft - soft.detach())
