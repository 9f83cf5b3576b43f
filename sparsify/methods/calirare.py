"""Individual calibration as a penalty (CALIRARE), around any method."""

from __future__ import annotations

import dataclasses

from sparsify.errors import RecipeError
from sparsify.methods.base import Method, checked_method, in_range, made_for
from sparsify.parts.individual import IndividualCalibration


@checked_method
def calirare(
    base: Method,
    *,
    weight: float = 0.1,
    refresh: int = 20,
    samples: int = 128,
    coverage: float = 0.9,
    damping: float = 1e-2,
) -> Method:
    """Pull each sample's confidence towards the centre of its leave-one-out interval (CALIRARE: Wu et al. 2023, arXiv:2307.09858).

    The loss is (1 - weight) times that of ``base`` plus weight times the mean of |confidence - centre| over the batch. The centre is that
    of the jackknife interval of the predicted class (`sparsify.parts.jackknife`), whose leave-one-out parameters of the last layer come
    from samples that training does not see: `sparsify run` sets them aside from the training samples, with the shares of all classes, and
    `sparsify.attach` is given them (``calibration``). Centres are computed for the features that the batch has in eval mode, which takes a
    forward pass per step, so no sample needs a number. The gradient flows through the logits only. For classification.

    The published code (CaliRare at 0349461) computes the penalty from detached predictions, so that it has no gradient; trains on the
    validation labels; and compares the confidence in the majority class with an interval of the minority class. None of that is done here.

    Args:
        base: any method for classification.
        weight: weight of the penalty, in [0, 1]; the default is that of the published script (``-lam``).
        refresh: steps between computations of the leave-one-out parameters, at least 1.
        samples: training samples to set aside for them, from 2 to 4096. Classes times samples may be at most 4096, unless classes times
            features are.
        coverage: of the intervals, in [0.01, 0.99].
        damping: added to the diagonal of the Hessian of the last layer, in [1e-6, 1e3]; the default is that of the published script.

    Raises:
        RecipeError: If ``base`` is calibrated in this way already or is for another task, or an option is out of range.

    Examples:
        >>> import sparsify as sp
        >>> sp.methods.calirare(sp.methods.rigl(density=0.1), weight=0.2).name
        'calirare(rigl)'
    """
    if base.individual is not None:
        raise RecipeError(f"method {base.name!r} has this penalty already; calirare() around it has nothing to add.")
    in_range(weight, 0.0, 1.0, "weight")
    in_range(refresh, 1, 10**9, "refresh")
    in_range(samples, 2, 4096, "samples")
    in_range(coverage, 0.01, 0.99, "coverage")
    in_range(damping, 1e-6, 1e3, "damping")
    return dataclasses.replace(
        base,
        name=f"calirare({base.name})",
        individual=IndividualCalibration(weight, refresh, samples, coverage, damping),
        tasks=made_for(base, "classification"),
    )
