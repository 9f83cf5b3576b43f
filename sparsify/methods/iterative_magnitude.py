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
    """IMP: train, prune, rewind, again, within one run (Frankle & Carbin 2019, arXiv:1803.03635).

    Rewinding to an early state instead of the first one: Frankle et al. 2019, arXiv:1903.01611. The run is divided into equally long
    trainings, one more than there are prunings: a run of E epochs at density 0.1 has twelve of E / 12 epochs with the default
    ``prune_fraction``. For trainings of full length ask for that many more epochs. The optimizer's state and the learning rate start over
    with each; the order of the data goes on. `docs/methods/imp.md` has the source of each default.

    Args:
        density: final density.
        prune_fraction: of the active weights, at the end of each training but the last, in (0, 1). With 1 - density or more it is one-shot
            pruning with rewinding.
        rewind_to: the early state, as a number of steps or a share of one training, from 0 (the initial weights: the original tickets).
        rewind: ``weights`` (with biases and norm statistics), or only ``learning-rate``, which goes on with the trained weights.
        allocation: global ranking by default.
        pattern: which positions may be active together. A pattern that fixes its density is reached in one pruning.
        keep_dense: globs of weights without a mask.

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
    """The density after each pruning: (1 - prune_fraction)^i, the last of them just ``density``."""
    found = [1.0 - prune_fraction]
    while found[-1] > density * (1 + 1e-9):
        found.append(found[-1] * (1.0 - prune_fraction))
    return [*found[:-1], density]


def trainings(total: int, prunings: int, rewind_to: Duration) -> tuple[int, tuple[int, ...]]:
    """The step of the early state, and those that end each training but the last; all but rounding equally long.

    Raises:
        RecipeError: If ``rewind_to`` is neither steps nor a share, or the run is too short.
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
