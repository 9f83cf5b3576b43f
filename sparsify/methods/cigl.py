"""CigL: calibrate the rigged lottery with random masks and an average of masked weights."""

from __future__ import annotations

import dataclasses

from sparsify.errors import RecipeError
from sparsify.methods.averaged import averaged
from sparsify.methods.base import Method, checked_method
from sparsify.methods.durations import Duration
from sparsify.methods.weight_dropout import weight_dropout


@checked_method
def cigl(
    base: Method,
    *,
    rate: float = 0.1,
    start_at: Duration = "80%",
    average_every: Duration = "0.4%",
    rescale: bool = False,
    holds_hidden: bool = True,
    average_masks: bool = True,
) -> Method:
    """CigL: random masks while training, one average of masked weights at the end (Lei et al. 2023, ICLR).

    Every step uses the weights ``Z * M * W``, where M is the mask of ``base`` and Z is drawn anew, and only updates visible weights. From
    ``start_at`` on, when M is fixed, the run averages ``Z * W``; the final network has these averages as its weights.

    Args:
        base: any method without random masks and averaging; the paper's is RigL.
        rate: share of hidden weights, in [0, 1). 0.1 is the paper's text; the repository's default is 0.01.
        start_at: first averaged step, or a share of the run. 80 % is epoch 200 of 250 in the repository.
        average_every: steps between averaged ones, or a share of the run. 0.4 % is one epoch of 250.
        rescale: whether to divide visible weights by 1 - rate, both in training and in the average. The paper does not.
        holds_hidden: whether a hidden weight keeps its value during the step (Algorithm 1); False: momentum and weight decay move it.
        average_masks: True averages masked weights (the paper); False averages only the weights, at the scale of ``rescale``.

    Raises:
        RecipeError: If ``base`` averages weights or has random masks already.

    Examples:
        >>> import sparsify as sp
        >>> method = sp.methods.cigl(sp.methods.rigl(density=0.1), rate=0.2)
        >>> method.name, [str(part) for part in method.passes]
        ('cigl(rigl)', ['insert-random-masks{rate=0.2}'])
    """
    if base.averaging is not None:
        raise RecipeError(
            f"method {base.name!r} averages weights already, and cigl does; put cigl inside: other(cigl(...))."
        )
    hidden = weight_dropout(base, rate=rate, rescale=rescale, holds_hidden=holds_hidden)
    method = averaged(hidden, start_at=start_at, average_every=average_every, random_masks=average_masks)
    return dataclasses.replace(method, name=f"cigl({base.name})")
