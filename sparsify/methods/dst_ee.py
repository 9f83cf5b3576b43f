"""DST-EE: drop by magnitude, grow where the gradient is large or the position has rarely been tried."""

from __future__ import annotations

from sparsify.methods.base import Method, checked_method, in_range, one_of
from sparsify.methods.durations import UPDATE_EVERY, Duration, as_steps, check_durations
from sparsify.parts.allocation import Allocation, erk
from sparsify.parts.schedules import cosine, every, geometric
from sparsify.parts.scores import (
    SCALES,
    absolute,
    added,
    exploration,
    gradient,
    magnitude,
    normalised,
    scaled,
    signed_gradient,
)
from sparsify.parts.topology import DropAndGrow

COUNTS = ("rounds", "steps")
NORMALISATIONS = (*SCALES, "layer")


@checked_method
def dst_ee(
    *,
    density: float,
    c: float = 0.01,
    eps: float = 1.0,
    c_decay: float = 1.0,
    c_decay_every: int = 400,
    normalise: str = "none",
    visits: str = "rounds",
    clock: str = "steps",
    signed: bool = False,
    update_every: Duration = UPDATE_EVERY,
    stop_at: Duration = "75%",
    drop_fraction: float = 0.3,
    drop_fraction_end: float = 0.0,
    replaces_step: bool = True,
    regrow_dropped: bool = True,
    initial_scale: str = "none",
    allocation: Allocation = erk,
    pattern: str = "unstructured",
    keep_dense: tuple[str, ...] = (),
) -> Method:
    """DST-EE: drop by magnitude, grow by |dL/dw| + c ln(t) / (N + eps) (Huang et al. 2023, arXiv:2211.16667).

    N counts how often a position has been active. Options shared with RigL have RigL's defaults, so c = 0 is RigL, bit for bit.
    `docs/methods/dst-ee.md` has the source of each default.

    Args:
        density: active share of the maskable weights during the whole run, in (0, 1].
        c: weight of exploration, at least 0. Its scale is that of the gradients; see ``normalise``.
        eps: added to N, above 0.
        c_decay: ``c`` is multiplied by this factor every ``c_decay_every`` steps.
        c_decay_every: steps between two decays of ``c``.
        normalise: ``layer`` divides the gradient of each layer by its mean |dL/dw| over inactive positions; ``outputs``, ``inputs`` and
            ``both`` divide it by its root mean square over the weights of each output, of each input, or of both. All bring gradients to
            the order of 1, so that one c suits layers and models of any scale: extensions of the published rule, ``none``.
        visits: what N counts: ``rounds`` or ``steps`` in which a position was active.
        clock: what t counts: ``steps`` or ``rounds``.
        signed: True scores by |dL/dw + c ln(t) / (N + eps)|, as a related code does; the bonus then counts against negative gradients.
        update_every: steps between rounds, or a share of the run.
        stop_at: step, or share of the run, after which masks stay fixed.
        drop_fraction: share of the active positions dropped per round at the start of the run, in [0, 1].
        drop_fraction_end: the same share at the end; in between, it follows half a cosine.
        replaces_step: whether a round replaces the optimizer step.
        regrow_dropped: whether a position just dropped may be grown in the same round; it then keeps its value.
        initial_scale: ``fan-in`` scales initial weights so that each output keeps its dense variance; ``none`` does not.
        allocation: how the density is split over weights; ERK by default.
        pattern: which positions may be active together.
        keep_dense: globs of the names of weights that get no mask.

    Examples:
        >>> import sparsify as sp
        >>> method = sp.methods.dst_ee(density=0.1, c=0.001, update_every=50)
        >>> method.name, method.density
        ('dst-ee', 0.1)
    """
    in_range(drop_fraction, 0.0, 1.0, "drop_fraction")
    in_range(drop_fraction_end, 0.0, 1.0, "drop_fraction_end")
    in_range(c, 0.0, 1e30, "c")
    in_range(eps, 1e-12, 1e30, "eps")
    in_range(c_decay, 0.0, 1.0, "c_decay")
    in_range(c_decay_every, 1, 2**62, "c_decay_every")
    check_durations(update_every=update_every, stop_at=stop_at)
    one_of(normalise, NORMALISATIONS, "normalise")
    one_of(visits, COUNTS, "visits")
    one_of(clock, COUNTS, "clock")

    def topology(total: int) -> DropAndGrow:
        stop, interval = as_steps(stop_at, total, "stop_at"), as_steps(update_every, total, "update_every")
        exploit = signed_gradient() if signed else gradient()
        explore = exploration(
            geometric(c, c_decay, every=c_decay_every),
            eps=eps,
            step_unit=interval if clock == "rounds" else 1,
            visit_unit=interval if visits == "steps" else 1,
        )
        grow_by = added(normalised(exploit) if normalise == "layer" else scaled(exploit, normalise), explore)
        return DropAndGrow(
            drop_by=magnitude(),
            grow_by=absolute(grow_by) if signed else grow_by,
            fraction=cosine(drop_fraction, stop, end=drop_fraction_end),
            when=every(interval, stop=stop),
            replaces_step=replaces_step,
            regrow_dropped=regrow_dropped,
        )

    return Method(
        name="dst-ee",
        density=density,
        initial="random",
        initial_scale=initial_scale,
        allocation=allocation,
        pattern=pattern,
        keep_dense=keep_dense,
        topology=topology,
    )
