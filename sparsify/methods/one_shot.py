"""One-shot magnitude pruning, then fine-tuning."""

from __future__ import annotations

from sparsify.methods.base import Method, checked_method
from sparsify.methods.durations import Duration, as_steps, check_durations
from sparsify.parts.allocation import Allocation, global_magnitude
from sparsify.parts.schedules import at, constant
from sparsify.parts.scores import magnitude
from sparsify.parts.topology import Prune


@checked_method
def one_shot(
    *,
    density: float,
    prune_at: Duration = "50%",
    allocation: Allocation = global_magnitude,
    pattern: str = "unstructured",
    keep_dense: tuple[str, ...] = (),
) -> Method:
    """Train densely, prune the smallest magnitudes once at ``prune_at``, and continue training (Han et al. 2015, arXiv:1506.02626).

    Args:
        density: active share of the maskable weights at the end, in (0, 1].
        prune_at: step of the pruning, or a share of the run.
        allocation: how the density is split over weights; by default, all weights are ranked together.
        pattern: which positions may be active together.
        keep_dense: globs of the names of weights that get no mask.

    Examples:
        >>> import sparsify as sp
        >>> sp.methods.one_shot(density=0.1, prune_at="25%").initial
        'dense'
    """
    check_durations(prune_at=prune_at)
    return Method(
        name="one-shot",
        density=density,
        initial="dense",
        allocation=allocation,
        pattern=pattern,
        keep_dense=keep_dense,
        topology=lambda total: Prune(
            by=magnitude(),
            density=constant(density),
            when=at(as_steps(prune_at, total, "prune_at")),
            allocation=allocation,
        ),
    )
