"""Weight averaging after the topology freezes, around any method."""

from __future__ import annotations

import dataclasses

from sparsify.errors import RecipeError
from sparsify.methods.base import Averaging, Method, as_steps


def averaged(base: Method, *, start_at: float = 0.8, average_every: float = 0.004, random_masks: bool = True) -> Method:
    """Average the weights of the last part of the run (Izmailov et al. 2018, arXiv:1803.05407).

    The run ends with the running mean of every parameter, taken each ``average_every`` steps from ``start_at`` on, and with
    batch-norm statistics estimated again for it. The trainer refuses a start before the last topology update: a mean over
    different masks is not sparse.

    Args:
        base: any method that does not average yet.
        start_at: step, or fraction of the run. 0.8 is epoch 200 of 250 of the CigL repository.
        average_every: steps, or fraction of the run. 0.004 is one epoch of 250, of the same source.
        random_masks: where the training graph reads weights through random masks (`weight_dropout`), average what it reads,
            mask and weight together (CigL); False averages the weights alone, as plain averaging does.

    Raises:
        RecipeError: If ``base`` averages already.
    """
    if base.averaging is not None:
        raise RecipeError(f"method {base.name!r} averages weights already; averaged() around it has nothing to add.")
    return dataclasses.replace(
        base,
        name=f"averaged({base.name})",
        averaging=lambda total: Averaging(
            start_at=as_steps(start_at, total, "start_at"),
            every=as_steps(average_every, total, "average_every"),
            random_masks=random_masks,
        ),
    )
