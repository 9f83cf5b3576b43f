"""MOON: add an "unknown" class to a classifier, a loss that moves mistakes towards it, and weight averaging at the end."""

from __future__ import annotations

import dataclasses

from sparsify.errors import RecipeError
from sparsify.methods.base import Averaging, Method, check_no_objective, checked_method, in_range, made_for, one_of
from sparsify.methods.durations import Duration, as_steps, check_durations
from sparsify.parts.objectives import Objective, UnknownAware
from sparsify.passes import WidenClassifier
from sparsify.passes.widen_classifier import SCORES


@checked_method
def widened(base: Method, *, score: str = "known") -> Method:
    """Add a logit for "unknown" to the classifier, and train with ordinary cross-entropy: CE(K+1), the ablation of MOON.

    Args:
        base: any method.
        score: how the output ``ood_score`` is computed. ``known``: the highest probability of a known class in the softmax over K + 1
            logits (the published code). ``odds``: the log-odds of known against unknown.

    Raises:
        RecipeError: If ``base`` has an unknown class already, or there is no such score.

    Examples:
        >>> import sparsify as sp
        >>> method = sp.methods.widened(sp.methods.rigl(density=0.1))
        >>> [str(part) for part in method.passes]
        ['widen-classifier']
    """
    one_of(score, SCORES, "score")
    if any(isinstance(step, WidenClassifier) for step in base.passes):
        raise RecipeError(f"method {base.name!r} has an unknown class already.")
    return dataclasses.replace(
        base,
        name=f"widened({base.name})",
        passes=(WidenClassifier(score=score), *base.passes),
        tasks=made_for(base, "classification"),
    )


@checked_method
def moon(
    base: Method,
    *,
    warmup: Duration = "5%",
    alpha_every: Duration = "1%",
    alpha_final: float = 1.0,
    alpha_divisor: float = 64.0,
    smoothing: float = 0.05,
    average: bool = True,
    average_from: Duration = "80%",
    average_every: Duration = "1%",
    score: str = "known",
) -> Method:
    """MOON: add an unknown class, the unknown-aware loss and tail averaging to ``base`` (Lei et al. 2024, arXiv:2403.20047).

    Formulas and defaults follow the published code (863f49a). Its runs have 100 epochs, so an epoch there is 1 % of the run here.

    Args:
        base: any method without a loss of its own; one that averages keeps its averaging.
        warmup: steps, or share of the run, of plain cross-entropy (``learn_epochs`` 5 of 100).
        alpha_every: steps, or share of the run, between changes of alpha (an epoch of 100).
        alpha_final: alpha at the end of the run (``w_out`` of its README).
        alpha_divisor: alpha starts from the running loss divided by this, above 0 (``w_out2`` of its README).
        smoothing: weight of the newest batch in the running loss, in (0, 1] (the code's constant).
        average: whether to average weights; masks must be fixed by ``average_from``.
        average_from: first averaged step, or a share of the run (``deduct`` 20 of 100).
        average_every: steps between averaged ones, or a share of the run. The paper's summary says once per epoch. Its code averages every
            step of the first tenth of an epoch, because it has an integer division in place of a remainder.
        score: how ``ood_score`` is computed; see `widened`.

    Raises:
        RecipeError: If ``base`` has a loss of its own, or an option is out of range.

    Examples:
        >>> import sparsify as sp
        >>> sp.methods.moon(sp.methods.rigl(density=0.1)).name
        'moon(rigl)'
    """
    check_no_objective(base, "moon")
    in_range(smoothing, 1e-6, 1.0, "smoothing")
    in_range(alpha_final, 1e-9, float("inf"), "alpha_final")
    in_range(alpha_divisor, 1e-9, float("inf"), "alpha_divisor")
    check_durations(warmup=warmup, alpha_every=alpha_every, average_from=average_from, average_every=average_every)

    def objective(total: int) -> Objective:
        steps = as_steps(warmup, total, "warmup")
        try:
            return UnknownAware(
                total, steps, as_steps(alpha_every, total, "alpha_every"), alpha_final, alpha_divisor, smoothing
            )
        except ValueError as error:
            raise RecipeError(f"moon({base.name}): {error}. Train longer, or lower warmup or alpha_every.") from error

    def averaging(total: int) -> Averaging:
        return Averaging(as_steps(average_from, total, "average_from"), as_steps(average_every, total, "average_every"))

    return dataclasses.replace(
        widened(base, score=score),
        name=f"moon({base.name})",
        objective=objective,
        averaging=base.averaging or (averaging if average else None),
    )
