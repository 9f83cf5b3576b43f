"""GraNet: gradual pruning that also exchanges positions after each pruning."""

from __future__ import annotations

from sparsify.methods.base import Method, checked_method, in_range, one_of
from sparsify.methods.durations import Duration, as_steps, check_durations
from sparsify.parts.allocation import Allocation, erk, global_magnitude
from sparsify.parts.schedules import cosine, cubic, every
from sparsify.parts.scores import SCALES, WHEN_SILENT, by_gradient, magnitude
from sparsify.parts.topology import DropAndGrow, InTurn, Prune


@checked_method
def granet(
    *,
    density: float,
    initial_density: float = 1.0,
    update_every: Duration = "1.4%",
    prune_from: Duration = 0,
    prune_until: Duration = "69%",
    regenerate_until: Duration = "100%",
    drop_fraction: float = 0.5,
    drop_fraction_end: float = 0.005,
    regrow_dropped: bool = True,
    normalise: str = "none",
    when_silent: str = "order",
    initial_allocation: Allocation = erk,
    allocation: Allocation = global_magnitude,
    pattern: str = "unstructured",
    keep_dense: tuple[str, ...] = (),
) -> Method:
    """GraNet: gradual magnitude pruning with zero-cost neuroregeneration (Liu et al. 2021, arXiv:2106.10404).

    Each round prunes over all layers along a cubic schedule, then drops a fraction of each layer's active positions by magnitude and grows
    as many by gradient. The last pruning is at ``prune_until`` itself, so the final density is exact whatever the interval.
    `docs/methods/granet.md` has the source of each default.

    Args:
        density: active share of the maskable weights at the end, in (0, 1].
        initial_density: 1 starts dense; less starts from random masks (the paper's sparse-to-sparse is 0.5).
        update_every: steps between rounds, or a share of the run; the default is 1000 of the steps of the published runs on CIFAR.
        prune_from: where pruning begins, a step or a share of the run; 0 is the start.
        prune_until: where pruning ends, a step or a share of the run.
        regenerate_until: step, or share of the run, after which masks stay fixed.
        drop_fraction: share of the active positions dropped per round at the start of the run, in [0, 1].
        drop_fraction_end: the same share at the end; in between, it follows half a cosine.
        regrow_dropped: whether a position dropped for regeneration may be grown in the same round; it then keeps its value, while a pruned
            one starts at 0.
        normalise: ``outputs``, ``inputs`` or ``both`` divides the gradient by its root mean square over the weights of each output, of each
            input, or of both, so that growth does not concentrate on a few of them; ``none`` is the published rule.
        when_silent: how a weight grows whose gradient is exactly 0 everywhere, as it is where the layer before it never fires: in the
            ``order`` of its positions, as in all ties, or at ``random``.
        initial_allocation: how random masks at the start split their density over weights.
        allocation: how each pruning splits the density over weights; by default, all weights are ranked together.
        pattern: which positions may be active together. If the pattern fixes the density, a single round reaches it.
        keep_dense: globs of the names of weights that get no mask.

    Examples:
        >>> import sparsify as sp
        >>> method = sp.methods.granet(density=0.1, initial_density=0.5)
        >>> method.initial, method.initial_density
        ('random', 0.5)
    """
    in_range(drop_fraction, 0.0, 1.0, "drop_fraction")
    in_range(drop_fraction_end, 0.0, 1.0, "drop_fraction_end")
    check_durations(0, prune_from=prune_from)
    check_durations(update_every=update_every, prune_until=prune_until, regenerate_until=regenerate_until)
    one_of(normalise, SCALES, "normalise")
    one_of(when_silent, WHEN_SILENT, "when_silent")

    def topology(total: int) -> InTurn:
        interval = as_steps(update_every, total, "update_every")
        start = as_steps(prune_from, total, "prune_from", least=0)
        end = as_steps(prune_until, total, "prune_until")
        stop = as_steps(regenerate_until, total, "regenerate_until")
        prune = Prune(
            by=magnitude(),
            density=cubic(initial_density, density, start_at=start, stop_at=end),
            when=lambda step: step == end or (start <= step < end and step % interval == 0),
            allocation=allocation,
        )
        regenerate = DropAndGrow(
            drop_by=magnitude(),
            grow_by=by_gradient(normalise=normalise, when_silent=when_silent),
            fraction=cosine(drop_fraction, stop, end=drop_fraction_end),
            when=every(interval, stop=stop),
            regrow_dropped=regrow_dropped,
        )
        return InTurn((prune, regenerate))

    return Method(
        name="granet",
        density=density,
        initial="random" if initial_density < 1.0 else "dense",
        initial_density=initial_density,
        allocation=initial_allocation,
        pattern=pattern,
        keep_dense=keep_dense,
        topology=topology,
    )
