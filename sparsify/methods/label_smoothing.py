"""Label smoothing and its successor MaxSup, constant or on a line over the run, around any method."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sparsify.errors import RecipeError
from sparsify.methods.base import Method, checked_method, in_range, with_objective
from sparsify.parts import calibrating_losses
from sparsify.parts.objectives import Objective, Scheduled, Stateless
from sparsify.parts.schedules import linear


@checked_method
def label_smoothing(base: Method, *, smoothing: float = 0.05, smoothing_end: float | None = None) -> Method:
    """Give a share of each label to all classes, constant or on a line over the run (Szegedy et al. 2016, arXiv:1512.00567).

    The equation is in `sparsify.parts.calibrating_losses.label_smoothing`. For classification.

    Args:
        base: any method without a loss of its own.
        smoothing: share of the target that all classes get, in [0, 1); 0 is cross-entropy. The default is that of the comparison of
            calibrating losses by Mukhoti et al. 2020; for accuracy, 0.1 is usual.
        smoothing_end: share at the last step, reached on a line; None: constant.

    Raises:
        RecipeError: If ``base`` has a loss of its own or is for another task, or an option is out of range.

    Examples:
        >>> import sparsify as sp
        >>> method = sp.methods.label_smoothing(sp.methods.rigl(density=0.1), smoothing=0.1, smoothing_end=0.0)
        >>> [method.objective(5).observe(None, None, {}, step) for step in (1, 3, 5)]
        [{'smoothing': 0.1}, {'smoothing': 0.05}, {'smoothing': 0.0}]
    """
    for option, value in {"smoothing": smoothing, "smoothing_end": smoothing_end}.items():
        if value is not None and not 0.0 <= value < 1.0:
            raise RecipeError(f"label-smoothing: {option} should be a share of the label in [0, 1), found {value}.")
    objective = _over_the_run(calibrating_losses.label_smoothing, "smoothing", smoothing, smoothing_end)
    return with_objective(base, "label-smoothing", objective)


@checked_method
def maxsup(base: Method, *, weight: float = 0.1, weight_end: float | None = None) -> Method:
    """MaxSup: lower the highest logit towards the mean, whether it is right or wrong (Zhou et al. 2025, arXiv:2502.15798).

    The equation is in `sparsify.parts.calibrating_losses.maxsup`. For classification.

    Args:
        base: any method without a loss of its own.
        weight: weight of the penalty, in [0, 1000]; 0 is cross-entropy.
        weight_end: weight at the last step, reached on a line; None: constant, as in the equation of the paper. The published code goes
            from 0.1 to 0.2, by epochs.

    Raises:
        RecipeError: If ``base`` has a loss of its own or is for another task, or an option is out of range.

    Examples:
        >>> import sparsify as sp
        >>> sp.methods.maxsup(sp.methods.rigl(density=0.1), weight_end=0.2).name
        'maxsup(rigl)'
    """
    in_range(weight, 0.0, 1000.0, "weight")
    if weight_end is not None:
        in_range(weight_end, 0.0, 1000.0, "weight_end")
    return with_objective(base, "maxsup", _over_the_run(calibrating_losses.maxsup, "maxsup_weight", weight, weight_end))


def _over_the_run(
    compute: Callable[[Tensor, Tensor, float], Tensor], name: str, start: float, end: float | None
) -> Callable[[int], Objective]:
    """Return what makes the objective whose number is ``start`` at the first step and ``end`` at the last; None: always ``start``."""

    def objective(total: int) -> Objective:
        if end is None:
            return Stateless(lambda logits, labels: compute(logits, labels, start))
        line = linear(start, end, stop_at=total - 1)
        return Scheduled(compute, name, lambda step: line(step - 1))

    return objective
