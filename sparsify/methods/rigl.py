"""RigL: the rigged lottery."""

from __future__ import annotations

from sparsify.methods.base import Method, checked_method, in_range, one_of
from sparsify.methods.durations import UPDATE_EVERY, Duration, as_steps, check_durations, dense_steps, read_length
from sparsify.parts.allocation import Allocation, erk
from sparsify.parts.schedules import cosine, every
from sparsify.parts.scores import SCALES, WHEN_SILENT, by_gradient, magnitude
from sparsify.parts.topology import DropAndGrow, Topology, after_dense


@checked_method
def rigl(
    *,
    density: float,
    update_every: Duration = UPDATE_EVERY,
    stop_at: Duration = "75%",
    drop_fraction: float = 0.3,
    dense_until: Duration = 0,
    replaces_step: bool = True,
    regrow_dropped: bool = True,
    normalise: str = "none",
    when_silent: str = "order",
    initial_scale: str = "none",
    allocation: Allocation = erk,
    pattern: str = "unstructured",
    keep_dense: tuple[str, ...] = (),
) -> Method:
    """RigL: drop by magnitude, grow by the dense gradient (Evci et al. 2020, arXiv:1911.11134).

    Args:
        density: active share of the maskable weights during the whole run, in (0, 1].
        update_every: steps between rounds, or a share of the run.
        stop_at: step, or share of the run, after which masks stay fixed.
        drop_fraction: share of the active positions dropped per round, in [0, 1]; it decays along half a cosine.
        dense_until: step, or share of the run, up to which training is dense. Masks then keep the largest magnitudes, so that a learned
            grouping can use trained weights. 0 starts from random masks (the published algorithm).
        replaces_step: whether a round replaces the optimizer step (as in the published algorithm and code).
        regrow_dropped: whether a position just dropped may be grown in the same round; it then keeps its value (the authors' answer in
            issue 5 of their repository).
        normalise: ``outputs``, ``inputs`` or ``both`` divides the gradient by its root mean square over the weights of each output, of each
            input, or of both, so that growth does not concentrate on a few of them; ``none`` is the published rule.
        when_silent: how a weight grows whose gradient is exactly 0 everywhere, as it is where the layer before it never fires: in the
            ``order`` of its positions, as in all ties, or at ``random``.
        initial_scale: ``fan-in`` scales initial weights so that each output keeps its dense variance; ``none`` is the published code.
        allocation: how the density is split over weights; ERK by default.
        pattern: which positions may be active together.
        keep_dense: globs of the names of weights that get no mask.

    Examples:
        >>> import sparsify as sp
        >>> method = sp.methods.rigl(density=0.1, update_every=20, pattern="grouped:8")
        >>> method.name, method.density, method.pattern
        ('rigl', 0.1, 'grouped:8')
    """
    in_range(drop_fraction, 0.0, 1.0, "drop_fraction")
    check_durations(update_every=update_every, stop_at=stop_at)
    check_durations(0, dense_until=dense_until)
    one_of(normalise, SCALES, "normalise")
    one_of(when_silent, WHEN_SILENT, "when_silent")

    def topology(total: int) -> Topology:
        stop, first = as_steps(stop_at, total, "stop_at"), dense_steps(dense_until, total)
        update = as_steps(update_every, total, "update_every")
        move = DropAndGrow(
            drop_by=magnitude(),
            grow_by=by_gradient(normalise=normalise, when_silent=when_silent),
            fraction=cosine(drop_fraction, stop),
            when=every(update, start=max(first + 1, update), stop=stop),
            replaces_step=replaces_step,
            regrow_dropped=regrow_dropped,
        )
        return after_dense(move, first, density=density, allocation=allocation)

    return Method(
        name="rigl",
        density=density,
        initial="random" if read_length(dense_until, "dense_until", 0).is_none else "dense",
        initial_scale=initial_scale,
        allocation=allocation,
        pattern=pattern,
        keep_dense=keep_dense,
        topology=topology,
    )
