"""NDSNN: sparse from the start, and each round drops more than it grows."""

from __future__ import annotations

from sparsify.methods.base import Method, checked_method, in_range, one_of
from sparsify.methods.durations import Duration, as_steps, check_durations
from sparsify.parts.allocation import Allocation, erk
from sparsify.parts.patterns import NM, parse_pattern
from sparsify.parts.schedules import cosine, cubic
from sparsify.parts.scores import SCALES, WHEN_SILENT, by_gradient, magnitude
from sparsify.parts.topology import Budgets, DropAndGrow

USUAL_START = 0.4
"""The density at the start, unless one is given."""


@checked_method
def ndsnn(
    *,
    density: float,
    initial_density: float | None = None,
    update_every: Duration = "1.5%",
    stop_at: Duration = "75%",
    drop_fraction: float = 0.5,
    drop_fraction_end: float = 0.05,
    regrow_dropped: bool = True,
    restart_regrown: bool = True,
    normalise: str = "none",
    when_silent: str = "random",
    initial_allocation: Allocation = erk,
    allocation: Allocation = erk,
    pattern: str = "unstructured",
    keep_dense: tuple[str, ...] = (),
) -> Method:
    """NDSNN: drop by magnitude and grow fewer by gradient, from a moderate to a high sparsity (Huang et al. 2023, arXiv:2304.12214).

    Made for spiking networks, and defined for any. Each layer has a budget that falls along a cubic curve from its share of
    ``initial_density`` to its share of ``density``. The last round is at ``stop_at`` itself, so the final density is exact whatever the
    interval. `docs/methods/ndsnn.md` has the source of each default; the paper's own values are not all known.

    Args:
        density: active share of the maskable weights at the end, in (0, 1].
        initial_density: the same at the start, in [density, 1]. None: 0.4, or ``density`` where that is higher or the pattern fixes it.
        update_every: steps between rounds, or a share of the run; the default makes 50 rounds.
        stop_at: step, or share of the run, of the last round; masks stay fixed after it.
        drop_fraction: share of the active positions dropped per round at the start of the run, in [0, 1]; a round drops more where the
            budget asks for it.
        drop_fraction_end: the same share at ``stop_at``; in between, it follows half a cosine.
        regrow_dropped: whether a position just dropped may be grown in the same round.
        restart_regrown: whether it then starts at 0, as other grown positions do; False: it keeps its value.
        normalise: ``outputs``, ``inputs`` or ``both`` divides the gradient by its root mean square over the weights of each output, of each
            input, or of both, so that growth does not concentrate on a few of them; ``none`` is the published rule.
        when_silent: how a weight grows whose gradient is exactly 0 everywhere, as it is where the layer before it never fires: at
            ``random``, or in the ``order`` of its positions.
        initial_allocation: how the density at the start is split over weights; one that needs their shapes only.
        allocation: how the density at the end is split over weights; one that needs their shapes only.
        pattern: which positions may be active together. A pattern that fixes the density leaves nothing to shrink.
        keep_dense: globs of the names of weights that get no mask.

    Examples:
        >>> import sparsify as sp
        >>> method = sp.methods.ndsnn(density=0.1)
        >>> budgets = method.topology(1000).budgets
        >>> [round(budgets.density_at(step), 3) for step in (0, 250, 500, 750)]
        [0.4, 0.189, 0.111, 0.1]
    """
    in_range(drop_fraction, 0.0, 1.0, "drop_fraction")
    in_range(drop_fraction_end, 0.0, 1.0, "drop_fraction_end")
    check_durations(update_every=update_every, stop_at=stop_at)
    one_of(normalise, SCALES, "normalise")
    one_of(when_silent, WHEN_SILENT, "when_silent")
    if initial_density is None:
        initial_density = density if isinstance(parse_pattern(pattern), NM) else max(USUAL_START, density)
    start = initial_density

    def topology(total: int) -> DropAndGrow:
        stop, interval = as_steps(stop_at, total, "stop_at"), as_steps(update_every, total, "update_every")
        left = cubic(1.0, 0.0, start_at=0, stop_at=stop)
        return DropAndGrow(
            drop_by=magnitude(),
            grow_by=by_gradient(normalise=normalise, when_silent=when_silent),
            fraction=cosine(drop_fraction, stop, end=drop_fraction_end),
            when=lambda step: step == stop or (step < stop and step % interval == 0),
            regrow_dropped=regrow_dropped,
            restart_regrown=restart_regrown,
            budgets=Budgets(start, density, initial_allocation, allocation, left),
        )

    return Method(
        name="ndsnn",
        density=density,
        initial="random",
        initial_density=initial_density,
        allocation=initial_allocation,
        pattern=pattern,
        keep_dense=keep_dense,
        topology=topology,
    )
