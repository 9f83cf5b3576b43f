"""AGENT: gradients corrected by old ones, with a coefficient learned along the way."""

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
        gamma: scale of the correction (the authors' code).
        smoothing: weight of the newest coefficient, in [0, 1] (the authors' code).
        initial: first coefficient (their RigL and ITOP code); no new one at the first refresh, where old and new weights are equal.
        bound: new coefficients are cut to [0, bound]; the authors' code does not. One is left out where the old losses, or gradients,
            of different batches differ only by rounding.
        coefficient: ``loss``, the regression of a batch's loss on its loss at the old snapshot (the authors' code); ``gradient``, the
            same of gradients, which minimises the variance; ``layer``, that for each parameter; ``fixed`` keeps ``initial`` (with
            gamma and initial 1: SVRG).
        snapshot: what u is the mean of. ``full``: an epoch of batches, by a pass over them at each refresh (the authors' code);
            ``subset``: ``snapshot_batches`` of them; ``running``: the old gradients of the steps since the refresh, at no cost beyond
            g_old. A mean of k batches has noise of its own; the last two multiply the coefficient by k / (k + 1), which is optimal.
        snapshot_batches: of ``subset``.
        refresh_every: steps, or share of the run, between snapshots; 0 is an epoch (the authors' code).

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
        return Correction(
            rule.first, lambda view, state: rule.correct(view, state, refresh), readings=readings, dense=True
        )

    return dataclasses.replace(
        base,
        name=f"agent({base.name})",
        passes=(*base.passes, RecordRandomness()),
        correction=correction,
    )
