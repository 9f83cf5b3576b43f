"""Random masks on the weights while training, around any method."""

from __future__ import annotations

import dataclasses

from sparsify.errors import RecipeError
from sparsify.methods.base import Method, checked_method
from sparsify.passes import InsertRandomMasks


@checked_method
def weight_dropout(base: Method, *, rate: float = 0.1, rescale: bool = True, holds_hidden: bool = True) -> Method:
    """Hide a random share of the weights from every training step (Wan et al. 2013, DropConnect, ICML).

    A pass inserts the random mask into the training graph, after the method's own mask; the trainer draws it anew at each step. Rounds
    rank all weights, hidden or not. The eval graph reads all active weights.

    Args:
        base: any method without random masks. Random masks apply to its masked weights; for a dense base, to all weights that could have
            a mask.
        rate: share of hidden weights, in [0, 1).
        rescale: whether to divide visible weights by 1 - rate, so that training uses them at the same expected scale as deployment.
        holds_hidden: whether a hidden weight keeps its value during the step (CigL, Lei et al. 2023, ICLR, Algorithm 1); False: momentum
            and weight decay move it.

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
