"""AGENT: correct gradients with old ones, by a coefficient that is learned during training."""

from __future__ import annotations

import dataclasses

from sparsify.errors import RecipeError
from sparsify.methods.base import Method, checked_method, in_range, one_of
from sparsify.methods.durations import Duration, as_steps, check_durations
from sparsify.parts.corrections import COMPARISONS, Correction
from sparsify.parts.snapshots import SnapshotCorrection, readings
from sparsify.passes import RecordRandomness

SNAPSHOTS = ("full", "subset", "running")


@checked_method
def agent(
    base: Method,
    *,
    gamma: float = 0.1,
    smoothing: float = 0.3,
    initial: float = 0.1,
    bound: float = 1.0,
    coefficient: str = "loss",
    snapshot: str = "full",
    snapshot_batches: int = 8,
    refresh_every: Duration = 0,
) -> Method:
    """AGENT: adaptive gradient correction (Lei et al. 2023, arXiv:2301.03573).

    A step's gradient g becomes ``g + gamma * c * (u - g_old)``: g_old is the gradient of the same batch at a snapshot of the weights,
    u the mean of g_old over batches. c is learned: ``c <- (1 - smoothing) * c + smoothing * c_new`` at every refresh.

    Args:
        base: any method without a correction.
        gamma: scale of the correction, at least 0 (default of the authors' code).
        smoothing: weight of the newest coefficient, in [0, 1] (default of the authors' code).
        initial: first coefficient (their RigL and ITOP code). The first refresh learns none, because old and new weights are equal there.
        bound: new coefficients are clipped to [0, bound]; the authors' code does not clip. No coefficient is learned if the old losses (or
            gradients) of different batches only differ by rounding.
        coefficient: how c is learned. ``loss``: by regression of a batch's loss on its loss at the old snapshot (the authors' code).
            ``gradient``: by the same regression of gradients, which minimises the variance. ``layer``: as ``gradient``, but for each
            parameter. ``fixed``: not at all, c stays ``initial`` (with gamma and initial 1, this is SVRG).
        snapshot: how u is computed. ``full``: as the mean over an epoch of batches at each refresh (the authors' code). ``subset``: as the
            mean over ``snapshot_batches`` batches. ``running``: as the mean of the old gradients since the refresh, which costs nothing
            beyond g_old. A mean over k batches is noisy, so the last two multiply c by k / (k + 1), which is optimal.
        snapshot_batches: number of batches for ``subset``, at least 1.
        refresh_every: steps between snapshots, or a share of the run; 0 means one epoch (the authors' code).

    Raises:
        RecipeError: If ``base`` corrects gradients already, or an option is out of range.

    Examples:
        >>> import sparsify as sp
        >>> sp.methods.agent(sp.methods.rigl(density=0.1)).name
        'agent(rigl)'
    """
    if base.correction is not None:
        raise RecipeError(f"method {base.name!r} corrects gradients already; agent() around it would replace that.")
    one_of(snapshot, SNAPSHOTS, "snapshot")
    one_of(coefficient, (*COMPARISONS, "fixed"), "coefficient")
    in_range(smoothing, 0.0, 1.0, "smoothing")
    in_range(gamma, 0.0, float("inf"), "gamma")
    in_range(bound, 0.0, float("inf"), "bound")
    in_range(snapshot_batches, 1, 10**9, "snapshot_batches")
    check_durations(0, refresh_every=refresh_every)
    rule = SnapshotCorrection(
        gamma=gamma,
        smoothing=smoothing,
        initial=initial,
        bound=bound,
        coefficient=coefficient,
        running=snapshot == "running",
        batches=snapshot_batches if snapshot == "subset" else None,
    )

    def correction(total: int) -> Correction:
        refresh = as_steps(refresh_every, total, "refresh_every", least=0)
        needs = (*(() if refresh else ("epoch_steps",)), *(() if rule.running else ("sweep",)))
        return Correction(
            rule.first,
            lambda view, state: rule.correct(view, state, refresh),
            readings=readings,
            dense=True,
            needs=needs,
        )

    return dataclasses.replace(
        base,
        name=f"agent({base.name})",
        passes=(*base.passes, RecordRandomness()),
        correction=correction,
    )
