"""Margin-based label smoothing (MbLS) and its successor ACLS, around any method."""

from __future__ import annotations

import functools

from sparsify.methods.base import Method, checked_method, in_range, with_objective
from sparsify.parts import calibrating_losses
from sparsify.parts.objectives import Stateless


@checked_method
def mbls(base: Method, *, weight: float = 0.1, margin: float = 10.0) -> Method:
    """MbLS: penalise logits that are further than a margin below the highest (Liu et al. 2022, arXiv:2111.15430).

    The equation is in `sparsify.parts.calibrating_losses.mbls`. For classification.

    Args:
        base: any method without a loss of its own.
        weight: weight of the penalty, in [0, 1000]; 0 is cross-entropy. Defaults are those of the published code.
        margin: distance of logits that is free, in [0, 1e6]. Later code has 6 for CIFAR.

    Raises:
        RecipeError: If ``base`` has a loss of its own or is for another task, or an option is out of range.

    Examples:
        >>> import sparsify as sp
        >>> sp.methods.mbls(sp.methods.rigl(density=0.1), margin=6.0).name
        'mbls(rigl)'
    """
    in_range(weight, 0.0, 1000.0, "weight")
    in_range(margin, 0.0, 1e6, "margin")
    loss = functools.partial(calibrating_losses.mbls, weight=weight, margin=margin)
    return with_objective(base, "mbls", lambda total: Stateless(loss))


@checked_method
def acls(
    base: Method,
    *,
    weight: float = 0.1,
    margin: float = 10.0,
    positive: float = 1.0,
    negative: float = 0.1,
    relative: bool = False,
) -> Method:
    """ACLS: penalise the squares by which the highest logit and its lead exceed a margin (Park et al. 2023, arXiv:2308.11911).

    The equation is in `sparsify.parts.calibrating_losses.acls`. For classification.

    Args:
        base: any method without a loss of its own.
        weight: weight of the penalty, in [0, 1000]; 0 is cross-entropy. Defaults are those of the published code for Tiny ImageNet.
        margin: what is free, in [0, 1e6].
        positive: weight of the term of the highest logit, in [0, 1000].
        negative: weight of the term of the other logits, in [0, 1000].
        relative: whether the term of the highest logit measures it from the lowest one, as the paper is understood; False: the logit as
            it is, as in the published code.

    Raises:
        RecipeError: If ``base`` has a loss of its own or is for another task, or an option is out of range.

    Examples:
        >>> import sparsify as sp
        >>> sp.methods.acls(sp.methods.rigl(density=0.1), relative=True).name
        'acls(rigl)'
    """
    in_range(weight, 0.0, 1000.0, "weight")
    in_range(margin, 0.0, 1e6, "margin")
    in_range(positive, 0.0, 1000.0, "positive")
    in_range(negative, 0.0, 1000.0, "negative")
    loss = functools.partial(
        calibrating_losses.acls,
        weight=weight,
        margin=margin,
        positive=positive,
        negative=negative,
        relative=relative,
    )
    return with_objective(base, "acls", lambda total: Stateless(loss))
