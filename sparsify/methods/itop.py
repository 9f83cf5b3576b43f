"""ITOP: drop and grow with settings that try nearly every position at some time."""

from __future__ import annotations

from sparsify.errors import RecipeError
from sparsify.methods.base import Method, checked_method, in_range, one_of
from sparsify.methods.durations import Duration, as_steps, check_durations
from sparsify.parts.allocation import Allocation, erk
from sparsify.parts.schedules import cosine, every
from sparsify.parts.scores import SCALES, WHEN_SILENT, added, by_gradient, magnitude, random, unvisited
from sparsify.parts.topology import DropAndGrow

GROWTH = {
    "gradient": (by_gradient, "4%"),
    "random": (random, "1.5%"),
    "unvisited": (lambda: added(random(), unvisited()), "1.5%"),
}


@checked_method
def itop(
    *,
    density: float,
    growth: str = "gradient",
    update_every: Duration | None = None,
    stop_at: Duration = "100%",
    drop_fraction: float = 0.5,
    drop_fraction_end: float = 0.005,
    replaces_step: bool = False,
    regrow_dropped: bool = True,
    normalise: str = "none",
    when_silent: str = "order",
    initial_scale: str = "none",
    allocation: Allocation = erk,
    pattern: str = "unstructured",
    keep_dense: tuple[str, ...] = (),
) -> Method:
    """ITOP: RigL or SET with rare, large rounds to the end of the run (Liu et al. 2021, arXiv:2102.02887).

    The idea is that as many positions as possible are active at some time (`coverage`), each for long enough to grow before it is judged.
    `docs/methods/itop.md` has the source of each default.

    Args:
        density: active share of the maskable weights during the whole run, in (0, 1].
        growth: ``gradient`` grows by the gradient (RigL-ITOP); ``random`` at random (SET-ITOP); ``unvisited`` at random among positions
            that were never active, as long as there are any.
        update_every: steps between rounds, or a share of the run. None: 4 % of the run for growth by gradient, else 1.5 %; these are 4000
            and 1500 steps of the published runs on CIFAR (250 epochs, batch size 128).
        stop_at: step, or share of the run, after which masks stay fixed.
        drop_fraction: share of the active positions dropped per round at the start of the run, in [0, 1].
        drop_fraction_end: the same share at the end; in between, it follows half a cosine.
        replaces_step: whether a round replaces the optimizer step.
        regrow_dropped: whether a position just dropped may be grown in the same round; it then keeps its value.
        normalise: with growth by gradient, ``outputs``, ``inputs`` or ``both`` divides it by its root mean square over the weights of each
            output, of each input, or of both, so that growth does not concentrate on a few of them; ``none`` is the published rule.
        when_silent: how a weight grows whose gradient is exactly 0 everywhere, as it is where the layer before it never fires: in the
            ``order`` of its positions, as in all ties, or at ``random``.
        initial_scale: ``fan-in`` scales initial weights so that each output keeps its dense variance; ``none`` does not.
        allocation: how the density is split over weights; ERK by default.
        pattern: which positions may be active together.
        keep_dense: globs of the names of weights that get no mask.

    Raises:
        RecipeError: If ``normalise`` or ``when_silent`` is given but growth is not by gradient.

    Examples:
        >>> import sparsify as sp
        >>> sp.methods.itop(density=0.1, growth="random").name
        'itop'
    """
    in_range(drop_fraction, 0.0, 1.0, "drop_fraction")
    in_range(drop_fraction_end, 0.0, 1.0, "drop_fraction_end")
    one_of(normalise, SCALES, "normalise")
    one_of(when_silent, WHEN_SILENT, "when_silent")
    if normalise != "none" and growth != "gradient":
        raise RecipeError(
            f"normalise divides gradients, and growth is {growth!r}; found normalise = {normalise!r}. Leave it out, or grow by gradient."
        )
    if when_silent != "order" and growth != "gradient":
        raise RecipeError(
            f"when_silent is for growth by gradient, and growth is {growth!r}; found when_silent = {when_silent!r}. Leave it out, or grow "
            f"by gradient."
        )
    score, usual = GROWTH[one_of(growth, tuple(GROWTH), "growth")]
    interval = usual if update_every is None else update_every
    check_durations(update_every=interval, stop_at=stop_at)

    def topology(total: int) -> DropAndGrow:
        stop = as_steps(stop_at, total, "stop_at")
        return DropAndGrow(
            drop_by=magnitude(),
            grow_by=by_gradient(normalise=normalise, when_silent=when_silent) if growth == "gradient" else score(),
            fraction=cosine(drop_fraction, stop, end=drop_fraction_end),
            when=every(as_steps(interval, total, "update_every"), stop=stop),
            replaces_step=replaces_step,
            regrow_dropped=regrow_dropped,
        )

    return Method(
        name="itop",
        density=density,
        initial="random",
        initial_scale=initial_scale,
        allocation=allocation,
        pattern=pattern,
        keep_dense=keep_dense,
        topology=topology,
    )
