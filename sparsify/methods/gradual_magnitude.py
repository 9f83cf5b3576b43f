"""GMP: gradual magnitude pruning along a cubic schedule."""

from __future__ import annotations

from sparsify.methods.base import Method, checked_method
from sparsify.methods.durations import UPDATE_EVERY, Duration, as_steps, check_durations
from sparsify.parts.allocation import Allocation, global_magnitude
from sparsify.parts.schedules import cubic
from sparsify.parts.scores import magnitude
from sparsify.parts.topology import Prune


@checked_method
def gmp(
    *,
    density: float,
    start_at: Duration = "5%",
    stop_at: Duration = "75%",
    update_every: Duration = UPDATE_EVERY,
    allocation: Allocation = global_magnitude,
    pattern: str = "unstructured",
    keep_dense: tuple[str, ...] = (),
) -> Method:
    """Prune from dense to ``density`` along a cubic schedule (Zhu & Gupta 2017, arXiv:1710.01878, eq. 1).

    The last round is at ``stop_at`` itself, so the final density is exact whatever the interval.

    Args:
        density: active share of the maskable weights at the end, in (0, 1].
        start_at: step, or share of the run, of the first round.
        stop_at: step, or share of the run, of the last round; the default leaves a quarter to train the final masks.
        update_every: steps between rounds, or a share of the run.
        allocation: how the density is split over weights; by default, all weights are ranked together.
        pattern: which positions may be active together. If the pattern fixes the density, a single round reaches it.
        keep_dense: globs of the names of weights that get no mask.

    Examples:
        >>> import sparsify as sp
        >>> method = sp.methods.gmp(density=0.1)
        >>> density = method.topology(1000).density
        >>> [round(density(step), 2) for step in (0, 50, 400, 750)]
        [1.0, 1.0, 0.21, 0.1]
    """

    check_durations(start_at=start_at, stop_at=stop_at, update_every=update_every)

    def topology(total: int) -> Prune:
        start, stop = as_steps(start_at, total, "start_at"), as_steps(stop_at, total, "stop_at")
        interval = as_steps(update_every, total, "update_every")
        return Prune(
            by=magnitude(),
            density=cubic(1.0, density, start_at=start, stop_at=stop),
            when=lambda step: step == stop or (start <= step < stop and step % interval == 0),
            allocation=allocation,
        )

    return Method(
        name="gmp",
        density=density,
        initial="dense",
        allocation=allocation,
        pattern=pattern,
        keep_dense=keep_dense,
        topology=topology,
    )
