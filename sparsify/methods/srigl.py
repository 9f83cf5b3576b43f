"""SRigL: RigL with a constant fan-in, and outputs that too little speaks for given up."""

from __future__ import annotations

from sparsify.errors import RecipeError
from sparsify.methods.base import Method, checked_method, in_range, one_of
from sparsify.methods.durations import UPDATE_EVERY, Duration, as_steps, check_durations
from sparsify.parts.allocation import Allocation, erk
from sparsify.parts.exchange import exchange_inputs
from sparsify.parts.schedules import cosine, every
from sparsify.parts.scores import SCALES, gradient, magnitude, scaled
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
    initial_scale: str = "fan-in",
    allocation: Allocation = erk,
    pattern: str = "fan-in",
    keep_dense: tuple[str, ...] = (),
) -> Method:
    """SRigL: RigL with constant fan-in and ablation of outputs (Lasby et al. 2024, arXiv:2305.02299).

    `docs/methods/srigl.md` has the source of each default.

    Args:
        density: of the whole run.
        ablation: give up outputs that have few salient inputs, for more inputs of the others; never those of the last weight.
        least_salient: share of the fan-in that has to be salient for an output to stay, from 0.
        update_every: steps between rounds, or a share of the run.
        stop_at: step, or share of the run, from which masks stay.
        drop_fraction: of the active positions, in [0, 1], decayed by half a cosine.
        replaces_step: a round takes the place of the optimizer step.
        normalise: ``outputs``, ``inputs`` or ``both`` divides the gradient by its root mean square over the weights of each output, of each
            input, or of both, so that growth does not gather on a few of them; ``none`` is the published rule.
        initial_scale: ``fan-in`` keeps the variance of each output at the start; ``none``.
        allocation: ERK by default.
        pattern: ``fan-in``, and no other: it is what the method is about.
        keep_dense: globs of weights without a mask.

    Raises:
        RecipeError: If the pattern is another.

    Examples:
        >>> import sparsify as sp
        >>> method = sp.methods.srigl(density=0.1)
        >>> method.pattern, method.initial_scale
        ('fan-in', 'fan-in')
    """
    in_range(drop_fraction, 0.0, 1.0, "drop_fraction")
    check_durations(update_every=update_every, stop_at=stop_at)
    one_of(normalise, SCALES, "normalise")
    in_range(least_salient, 0.0, 1e6, "least_salient")
    if pattern != "fan-in":
        raise RecipeError(f"srigl trains pattern fan-in, found {pattern!r}. Ask for --pattern fan-in, or use rigl.")

    def topology(total: int) -> DropAndGrow:
        stop = as_steps(stop_at, total, "stop_at")
        return DropAndGrow(
            drop_by=magnitude(),
            grow_by=scaled(gradient(), normalise),
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
