"""Adversarial inputs: small changes that raise the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Attack:
    """Projected gradient descent in a box around each input, sized in units of the inputs.

    Attributes:
        radius: half the side of the box; nothing leaves it.
        step_size: how far one iteration moves each input, in the same units.
        iterations: number of gradient steps, at least 1; each costs a forward and a backward pass.
    """

    radius: float
    step_size: float
    iterations: int


def perturbed(loss: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, attack: Attack) -> Tensor:
    """Move ``x`` along the signs of the loss's gradient (Madry et al. 2018, arXiv:1706.06083, section 2.1).

    Args:
        loss: maps inputs of the shape of ``x`` to a scalar, a sum or mean of terms that each depend on one sample only.
        x: inputs [N, ...], float.
        start: offset from ``x`` at which to begin, of the same shape. The result of each iteration is projected onto the box.
        attack: size of the box, step size and number of iterations.

    Returns:
        A new tensor with ``|result - x| <= radius``, without gradient.
    """
    box, moved = attack.radius, x.detach() + start.clamp(-attack.radius, attack.radius)
    with torch.enable_grad():
        for _ in range(attack.iterations):
            at = moved.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(at), at)
            moved = x + (at.detach() + attack.step_size * gradient.sign() - x).clamp(-box, box)
    return moved.detach()
