"""Balancing Act: constraints on what each class loses, around any method."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from sparsify.errors import RecipeError
from sparsify.methods.base import Method, checked_method, in_range, one_of, with_objective
from sparsify.methods.durations import Duration, as_steps, check_durations
from sparsify.parts.balancing import EXCESS_GAP, RECALL, Balancing
from sparsify.parts.objectives import Objective


@checked_method
def balancing_act(
    base: Method,
    *,
    tolerance: float = 0.01,
    constraint: str = EXCESS_GAP,
    classes: Sequence[int] = (),
    dual_rate: float = 0.01,
    memory: int = 40,
    start_at: Duration = "30%",
    bounded: bool = True,
    dense_recall: Sequence[float] | None = None,
) -> Method:
    """Balancing Act: bound what each class loses beside a dense model (Hashemizadeh et al. 2024, arXiv:2310.20673).

    The equations are in `sparsify.parts.balancing.Balancing`. The recalls of the dense model are those on the training samples without
    augmentation. A run computes them from its baseline or its teacher; in `sparsify.attach` they are given. For classification.

    Args:
        base: any method without a loss of its own.
        tolerance: largest gap that costs nothing, in [-1, 1]. The published runs have 0.1 and 0.01.
        constraint: ``excess-gap`` bounds the loss of recall of a class minus the loss of accuracy (the paper); ``recall`` bounds the loss
            of recall itself, and adds the cross-entropy of a class to the loss without subtracting the mean.
        classes: classes with a constraint; empty: all.
        dual_rate: step size of the multipliers, in (0, 1000]. The published runs have 0.01 and 0.0001.
        memory: number of predictions per class that a recall is computed from, from 1 on; 40 is published.
        start_at: first step at which multipliers change, or a share of the run; 30 % is epoch 15 of 50, as published.
        bounded: whether samples of other classes keep a weight of at least 0 in the loss of ``excess-gap``. False is the published loss:
            once the multipliers of a batch add up to more than 1, it rewards mistakes on the other classes, and may diverge.
        dense_recall: recall of each class of the dense model, in [0, 1]. None: the run computes them.

    Raises:
        RecipeError: If ``base`` has a loss of its own or is for another task, or an option is out of range.

    Examples:
        >>> import sparsify as sp
        >>> method = sp.methods.balancing_act(sp.methods.gmp(density=0.1), dense_recall=[0.9, 0.8])
        >>> method.name, method.objective(100).start_at
        ('balancing-act(gmp)', 30)
    """
    in_range(tolerance, -1.0, 1.0, "tolerance")
    in_range(dual_rate, 1e-9, 1e3, "dual_rate")
    in_range(memory, 1, 10**6, "memory")
    one_of(constraint, (EXCESS_GAP, RECALL), "constraint")
    check_durations(0, start_at=start_at)
    for recall in dense_recall or ():
        in_range(recall, 0.0, 1.0, "dense_recall")
    if any(place < 0 for place in classes) or len({*classes}) < len(classes):
        raise RecipeError(f"balancing-act: classes should be different class numbers from 0, found {list(classes)}.")

    def against(recalls: Sequence[float | None] | None) -> Callable[[int], Objective]:
        return lambda total: Balancing(
            None if recalls is None else tuple(recalls),
            constraint=constraint,
            tolerance=tolerance,
            rate=dual_rate,
            memory=memory,
            classes=tuple(classes),
            start_at=as_steps(start_at, total, "start_at", least=0),
            bounded=bounded,
        )

    method = with_objective(base, "balancing-act", against(dense_recall))
    return dataclasses.replace(method, reference=None if dense_recall is not None else against)
