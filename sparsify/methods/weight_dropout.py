"""Random masks on the weights while training, around any method."""

from __future__ import annotations

import dataclasses

from sparsify.errors import RecipeError
from sparsify.methods.base import Method, checked_method
from sparsify.passes import InsertRandomMasks


@checked_method
def weight_dropout(base: Method, *, rate: float = 0.1, rescale: bool = True, holds_hidden: bool = True) -> Method:
    """Hide a random share of the weights from every training step (Wan et al. 2013, DropConnect, ICML).

    A pass puts the random mask into the training graph, behind the mask of the method; the trainer draws it anew each step.
    Rounds rank the weights themselves, hidden or not. The eval graph reads all active weights.

    Args:
        base: any method without random masks. Its masked weights are hidden; of a dense base, all that could have a mask.
        rate: share of hidden weights, in [0, 1).
        rescale: divide what is left by 1 - rate, so that training reads the weights at the scale at which they are deployed.
        holds_hidden: a hidden weight keeps its value through the step (CigL, Lei et al. 2023, ICLR, Algorithm 1); False lets
            momentum and weight decay move it.

    Raises:
        RecipeError: If ``base`` has random masks already, or ``rate`` is out of range.

    Examples:
        >>> import sparsify as sp
        >>> method = sp.methods.weight_dropout(sp.methods.rigl(density=0.1), rate=0.2)
        >>> [str(part) for part in method.passes]
        ['insert-random-masks{rate=0.2 rescale=true}']
    """
    if any(isinstance(step, InsertRandomMasks) for step in base.passes):
        raise RecipeError(
            f"method {base.name!r} has random masks already; put one wrapper that adds them around a method."
        )
    if not 0.0 <= rate < 1.0:
        raise RecipeError(f"weight-dropout: rate should be a share of the weights in [0, 1), found {rate}.")
    return dataclasses.replace(
        base,
        name=f"weight-dropout({base.name})",
        passes=(*base.passes, InsertRandomMasks(rate=rate, rescale=rescale)),
        holds_hidden=holds_hidden,
    )
