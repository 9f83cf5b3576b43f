"""Focal and dual focal loss, around any method."""

from __future__ import annotations

import functools

from sparsify.errors import RecipeError
from sparsify.methods.base import Method, checked_method, in_range, with_objective
from sparsify.parts import calibrating_losses
from sparsify.parts.objectives import Stateless

HARD_BELOW = 0.2
"""Probability of the label below which FLSD-53 has another exponent."""


@checked_method
def focal(
    base: Method, *, gamma: float = 3.0, hard_gamma: float | None = None, hard_below: float = HARD_BELOW
) -> Method:
    """Weigh a sample less, the surer the model is of its label (Lin et al. 2017, arXiv:1708.02002).

    The equation is in `sparsify.parts.calibrating_losses.focal`. ``hard_gamma=5`` makes it FLSD-53 (Mukhoti et al. 2020,
    arXiv:2002.09437). For classification.

    Args:
        base: any method without a loss of its own.
        gamma: exponent of 1 - p of the label, in [0, 100]; 0 is cross-entropy. The default is that of Mukhoti et al.
        hard_gamma: exponent of samples with p of the label below ``hard_below``, in [0, 100]; None: ``gamma`` for all.
        hard_below: in [0, 1]; the default is that of FLSD-53.

    Raises:
        RecipeError: If ``base`` has a loss of its own or is for another task, an option is out of range, or ``hard_below`` is given
            without ``hard_gamma``.

    Examples:
        >>> import sparsify as sp
        >>> sp.methods.focal(sp.methods.rigl(density=0.1), hard_gamma=5.0).name
        'focal(rigl)'
    """
    in_range(gamma, 0.0, 100.0, "gamma")
    in_range(hard_below, 0.0, 1.0, "hard_below")
    if hard_gamma is not None:
        in_range(hard_gamma, 0.0, 100.0, "hard_gamma")
    elif hard_below != HARD_BELOW:
        raise RecipeError(
            f"focal: hard_below is {hard_below:g}, but without hard_gamma all samples have the same exponent. Set hard_gamma as well, as "
            f"hard_gamma=5, or leave hard_below out."
        )
    loss = functools.partial(calibrating_losses.focal, gamma=gamma, hard_gamma=hard_gamma, hard_below=hard_below)
    return with_objective(base, "focal", lambda total: Stateless(loss))


@checked_method
def dual_focal(base: Method, *, gamma: float = 5.0) -> Method:
    """Weigh a sample by how far its label is from the next lower class (Tao et al. 2023, arXiv:2305.13665).

    The equation is in `sparsify.parts.calibrating_losses.dual_focal`. For classification.

    Args:
        base: any method without a loss of its own.
        gamma: the exponent, in [0, 100]; 0 is cross-entropy. It was tuned per network: 5 is that of ResNet-50 on CIFAR-10 and CIFAR-100,
            others are between 2.3 and 6.1.

    Raises:
        RecipeError: If ``base`` has a loss of its own or is for another task, or an option is out of range.

    Examples:
        >>> import sparsify as sp
        >>> sp.methods.dual_focal(sp.methods.rigl(density=0.1)).name
        'dual-focal(rigl)'
    """
    in_range(gamma, 0.0, 100.0, "gamma")
    loss = functools.partial(calibrating_losses.dual_focal, gamma=gamma)
    return with_objective(base, "dual-focal", lambda total: Stateless(loss))
