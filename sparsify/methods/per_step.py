"""A loss for every step of a spiking network, around any method."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sparsify.methods.base import Method, checked_method, with_objective
from sparsify.parts.objectives import Stateless
from sparsify.passes import AverageSteps


@checked_method
def per_step(base: Method) -> Method:
    """Train a spiking network with the mean of the cross-entropies of its steps, not with the cross-entropy of its mean logits.

    It is the loss of the lottery tickets of Kim et al. 2022 (arXiv:2207.01382): every step has to be right on its own. For
    classification, with a program that the pass ``spiking`` made; predictions still average logits.

    Args:
        base: any method without a loss of its own.

    Raises:
        RecipeError: If ``base`` has a loss of its own or is for another task.

    Examples:
        >>> import sparsify as sp
        >>> method = sp.methods.per_step(sp.methods.rigl(density=0.1))
        >>> method.name, [str(part) for part in method.passes]
        ('per-step(rigl)', ['average-steps'])
    """
    made = with_objective(base, "per-step", lambda total: Stateless(_likelihood))
    return dataclasses.replace(made, passes=(*base.passes, AverageSteps()))


def _likelihood(averages: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of -averages[n, label of n], of log-probabilities [N, K] averaged over steps."""
    return torch.nn.functional.nll_loss(averages, labels)
