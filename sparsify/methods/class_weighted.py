"""Cross-entropy with a weight per class, around any method."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from sparsify.errors import RecipeError
from sparsify.methods.base import Method, checked_method, in_range, with_objective
from sparsify.parts import balancing
from sparsify.parts.balancing import ByFrequency
from sparsify.parts.objectives import Stateless


@checked_method
def class_weighted(base: Method, *, weights: Sequence[float] | None = None) -> Method:
    """Weigh the cross-entropy of each sample by its class.

    The weighted mean is in `sparsify.parts.balancing.class_weighted`. Gradients are those of the weighted loss, also where a method grows
    or drops by gradient, so that weights that matter to heavy classes score higher. For classification.

    Args:
        base: any method without a loss of its own.
        weights: a number per class, in [0, 1e6]; only their ratios matter. None: 1 / n_c for a class with n_c of the labels that training
            has seen so far, which gives all classes the same total weight.

    Raises:
        RecipeError: If ``base`` has a loss of its own or is for another task, or a weight is out of range, or all are 0.

    Examples:
        >>> import sparsify as sp
        >>> sp.methods.class_weighted(sp.methods.rigl(density=0.1), weights=[1.0, 4.0]).name
        'class-weighted(rigl)'
    """
    if weights is None:
        return with_objective(base, "class-weighted", lambda total: ByFrequency())
    for weight in weights:
        in_range(weight, 0.0, 1e6, "weights")
    if not any(weights):
        raise RecipeError(f"class-weighted: at least one weight should be above 0, found {list(weights)}.")
    loss = functools.partial(balancing.class_weighted, weights=tuple(weights))
    return with_objective(base, "class-weighted", lambda total: Stateless(loss))
