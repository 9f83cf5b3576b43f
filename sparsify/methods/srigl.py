"""SRigL: RigL with a constant fan-in, which also removes outputs with few salient inputs."""

from __future__ import annotations

from sparsify.errors import RecipeError
from sparsify.methods.base import Method, checked_method, in_range, one_of
from sparsify.methods.durations import UPDATE_EVERY, Duration, as_steps, check_durations
from sparsify.parts.allocation import Allocation, erk
from sparsify.parts.exchange import exchange_inputs
from sparsify.parts.schedules import cosine, every
from sparsify.parts.scores import SCALES, WHEN_SILENT, by_gradient, magnitude
from sparsify.parts.topology import DropAndGrow


@checked_method
def srigl(
    *,
    density: float,
    ablation: bool = True,
    least_salient: float = 0.3,
    update_every: Duration = UPDATE_EVERY,
    stop_at: Duration = "75%",
    drop_fraction: float = 0.3,
    replaces_step: bool = True,
    normalise: str = "none",
    when_silent: str = "order",
    initial_scale: str = "fan-in",
    allocation: Allocation = erk,
    pattern: str = "fan-in",
    keep_dense: tuple[str, ...] = (),
) -> Method:
    """SRigL: RigL with constant fan-in and ablation of outputs (Lasby et al. 2024, arXiv:2305.02299).

    `docs/methods/srigl.md` has the source of each default.

    Args:
        density: active share of the maskable weights during the whole run, in (0, 1].
        ablation: whether to remove outputs that have few salient inputs and give their inputs to the others; never in the last weight.
        least_salient: an output stays if at least this share of its fan-in is salient, at least 0.
        update_every: steps between rounds, or a share of the run.
        stop_at: step, or share of the run, after which masks stay fixed.
        drop_fraction: share of the active positions dropped per round, in [0, 1]; it decays along half a cosine.
        replaces_step: whether a round replaces the optimizer step.
        normalise: ``outputs``, ``inputs`` or ``both`` divides the gradient by its root mean square over the weights of each output, of each
            input, or of both, so that growth does not concentrate on a few of them; ``none`` is the published rule.
        when_silent: how a weight grows whose gradient is exactly 0 everywhere, as it is where the layer before it never fires: in the
            ``order`` of its positions, as in all ties, or at ``random``.
        initial_scale: ``fan-in`` scales initial weights so that each output keeps its dense variance; ``none`` does not.
        allocation: how the density is split over weights; ERK by default.
        pattern: must be ``fan-in``, which defines the method.
        keep_dense: globs of the names of weights that get no mask.

    Raises:
        RecipeError: If the pattern is not ``fan-in``.

    Examples:
        >>> import sparsify as sp
        >>> method = sp.methods.srigl(density=0.1)
        >>> method.pattern, method.initial_scale
        ('fan-in', 'fan-in')
    """
    in_range(drop_fraction, 0.0, 1.0, "drop_fraction")
    check_durations(update_every=update_every, stop_at=stop_at)
    one_of(normalise, SCALES, "normalise")
    one_of(when_silent, WHEN_SILENT, "when_silent")
    in_range(least_salient, 0.0, 1e6, "least_salient")
    if pattern != "fan-in":
        raise RecipeError(f"srigl trains pattern fan-in, found {pattern!r}. Ask for --pattern fan-in, or use rigl.")

    def topology(total: int) -> DropAndGrow:
        stop = as_steps(stop_at, total, "stop_at")
        return DropAndGrow(
            drop_by=magnitude(),
            grow_by=by_gradient(normalise=normalise, when_silent=when_silent),
            fraction=cosine(drop_fraction, stop),
            when=every(as_steps(update_every, total, "update_every"), stop=stop),
            replaces_step=replaces_step,
            exchange=lambda mask, drop_score, grow_score, fraction, *, last: exchange_inputs(
                mask, drop_score, grow_score, fraction, ablate=least_salient if ablation and not last else None
            ),
        )

    return Method(
        name="srigl",
        density=density,
        initial="random",
        initial_scale=initial_scale,
        allocation=allocation,
        pattern=pattern,
        keep_dense=keep_dense,
        topology=topology,
    )
