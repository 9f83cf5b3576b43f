"""Weight averaging after the topology freezes, around any method."""

from __future__ import annotations

import dataclasses

from sparsify.errors import RecipeError
from sparsify.methods.base import Averaging, Method, checked_method
from sparsify.methods.durations import Duration, as_steps, check_durations


@checked_method
def averaged(
    base: Method, *, start_at: Duration = "80%", average_every: Duration = "0.4%", random_masks: bool = True
) -> Method:
    """Average the weights of the last part of the run (Izmailov et al. 2018, arXiv:1803.05407).

    At the end of the run, every parameter is the mean of its values at every ``average_every``-th step from ``start_at`` on, and
    batch-norm statistics are estimated again for it. The trainer refuses a start before the last topology update, because a mean over
    different masks is not sparse.

    Args:
        base: any method that does not average yet.
        start_at: first averaged step, or a share of the run. 80 % is epoch 200 of 250 in the CigL repository.
        average_every: steps between averaged ones, or a share of the run. 0.4 % is one epoch of 250 in the same repository.
        random_masks: with random masks (`weight_dropout`), True averages what training reads, weight times random mask (CigL); False
            averages only the weights, as plain averaging does.

    Raises:
        RecipeError: If ``base`` averages already.

    Examples:
        >>> import sparsify as sp
        >>> method = sp.methods.averaged(sp.methods.rigl(density=0.1), start_at="90%")
        >>> method.name, method.averaging(1000).start_at
        ('averaged(rigl)', 900)
    """
    if base.averaging is not None:
        raise RecipeError(f"method {base.name!r} averages weights already; averaged() around it has nothing to add.")
    check_durations(start_at=start_at, average_every=average_every)
    return dataclasses.replace(
        base,
        name=f"averaged({base.name})",
        averaging=lambda total: Averaging(
            start_at=as_steps(start_at, total, "start_at"),
            every=as_steps(average_every, total, "average_every"),
            random_masks=random_masks,
        ),
    )
