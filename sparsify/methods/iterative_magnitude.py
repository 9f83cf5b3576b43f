"""IMP: iterative magnitude pruning with rewinding, the search for winning lottery tickets."""

from __future__ import annotations

import bisect

from sparsify.errors import RecipeError
from sparsify.methods.base import Method, check_density, checked_method, in_range, one_of
from sparsify.methods.durations import Duration, check_durations, read_length, resolved
from sparsify.parts.allocation import Allocation, global_magnitude
from sparsify.parts.patterns import NM, parse_pattern
from sparsify.parts.scores import magnitude
from sparsify.parts.topology import Prune, Rewinding

REWIND = ("weights", "learning-rate")


@checked_method
def imp(
    *,
    density: float,
    prune_fraction: float = 0.2,
    rewind_to: Duration = "5%",
    rewind: str = "weights",
    allocation: Allocation = global_magnitude,
    pattern: str = "unstructured",
    keep_dense: tuple[str, ...] = (),
) -> Method:
    """IMP: train, prune and rewind repeatedly within one run (Frankle & Carbin 2019, arXiv:1803.03635).

    Rewinding to an early state instead of the first one follows Frankle et al. 2019, arXiv:1903.01611. The run is divided into trainings of
    equal length, one more than there are prunings. With the default ``prune_fraction``, a run of E epochs at density 0.1 has twelve
    trainings of E / 12 epochs; for trainings of full length, ask for twelve times the epochs. Each training starts with a fresh optimizer
    state and learning-rate schedule; the order of the data continues. `docs/methods/imp.md` has the source of each default.

    Args:
        density: active share of the maskable weights at the end, in (0, 1].
        prune_fraction: share of the active weights pruned at the end of each training but the last, in (0, 1). With 1 - density or more,
            this is one-shot pruning with rewinding.
        rewind_to: the state to go back to, as a number of steps or a share of one training; 0 is the initial weights (original tickets).
        rewind: ``weights`` also restores weights, biases and norm statistics; ``learning-rate`` continues with the trained weights.
        allocation: how the density is split over weights; by default, all weights are ranked together.
        pattern: which positions may be active together. If the pattern fixes the density, a single pruning reaches it.
        keep_dense: globs of the names of weights that get no mask.

    Examples:
        >>> import sparsify as sp
        >>> method = sp.methods.imp(density=0.1, rewind_to="10%")
        >>> method.name, method.density
        ('imp', 0.1)
    """
    check_density("imp", density)
    in_range(prune_fraction, 1e-3, 1.0, "prune_fraction")
    one_of(rewind, REWIND, "rewind")
    check_durations(0, rewind_to=rewind_to)
    densities = [density]
    if not isinstance(parse_pattern(pattern), NM):
        densities = ladder(density, prune_fraction)

    def plan(total: int) -> Rewinding:
        early, ends = trainings(total, len(densities), rewind_to)
        return Rewinding(save_at=resolved("rewind_to", early), at=ends, weights=rewind == "weights")

    def topology(total: int) -> Prune:
        _, at = trainings(total, len(densities), rewind_to)
        return Prune(
            by=magnitude(),
            density=lambda step: densities[bisect.bisect_left(at, step)],
            when=lambda step: step in at,
            allocation=allocation,
        )

    return Method(
        name="imp",
        density=density,
        initial="dense",
        allocation=allocation,
        pattern=pattern,
        keep_dense=keep_dense,
        topology=topology,
        rewinding=plan,
    )


def ladder(density: float, prune_fraction: float) -> list[float]:
    """Return the density after each pruning: (1 - prune_fraction)^i, and exactly ``density`` after the last."""
    found = [1.0 - prune_fraction]
    while found[-1] > density * (1 + 1e-9):
        found.append(found[-1] * (1.0 - prune_fraction))
    return [*found[:-1], density]


def trainings(total: int, prunings: int, rewind_to: Duration) -> tuple[int, tuple[int, ...]]:
    """Return the step of the early state, and the last step of each training but the last. Trainings are equally long up to rounding.

    Raises:
        RecipeError: If ``rewind_to`` is neither a number of steps nor a share, or the run is too short.
    """
    length = read_length(rewind_to, "rewind_to", 0)
    if length.share is None:
        early = length.low
    else:
        # A training has T steps, of which those before the early state are made once: T + prunings (1 - share) T = total.
        early = round(length.share * total / (1 + prunings * (1 - length.share)))
    left = total - early
    if left < prunings + 1:
        raise RecipeError(
            f"imp: {total} steps do not hold {prunings} prunings with a rewinding to step {early}. Train for more epochs, rewind "
            f"earlier, or raise prune_fraction."
        )
    return early, tuple(early + round(left * i / (prunings + 1)) for i in range(1, prunings + 1))
