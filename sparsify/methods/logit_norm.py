"""LogitNorm: cross-entropy of logits of a fixed length, around any method."""

from __future__ import annotations

import functools

from sparsify.methods.base import Method, checked_method, in_range, with_objective
from sparsify.parts import calibrating_losses
from sparsify.parts.objectives import Stateless


@checked_method
def logit_norm(base: Method, *, temperature: float = 0.04) -> Method:
    """LogitNorm: train with cross-entropy of logits of a fixed length (Wei et al. 2022, arXiv:2205.09310).

    The equation is in `sparsify.parts.calibrating_losses.logit_norm`. Only the loss changes: predictions and files have the softmax of the
    logits as they are, whose length training leaves open, so calibrate afterwards. For classification.

    Args:
        base: any method without a loss of its own.
        temperature: what the logits of length 1 are divided by, in [0.001, 1000]. The default is that of the paper for CIFAR-10.

    Raises:
        RecipeError: If ``base`` has a loss of its own or is for another task, or the option is out of range.

    Examples:
        >>> import sparsify as sp
        >>> sp.methods.logit_norm(sp.methods.rigl(density=0.1)).name
        'logit-norm(rigl)'
    """
    in_range(temperature, 1e-3, 1e3, "temperature")
    loss = functools.partial(calibrating_losses.logit_norm, temperature=temperature)
    return with_objective(base, "logit-norm", lambda total: Stateless(loss))
