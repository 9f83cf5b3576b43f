"""Static random: sparse from the start, never changed."""

from __future__ import annotations

from sparsify.methods.base import Method, checked_method
from sparsify.parts.allocation import Allocation, erk


@checked_method
def static_random(
    *,
    density: float,
    initial_scale: str = "none",
    allocation: Allocation = erk,
    pattern: str = "unstructured",
    keep_dense: tuple[str, ...] = (),
) -> Method:
    """Keep random masks with exact budgets for the whole run; the baseline that topology updates have to beat.

    Args:
        density: active share of the maskable weights during the whole run, in (0, 1].
        initial_scale: ``fan-in`` scales initial weights so that each output keeps its dense variance; ``none`` is the published code.
        allocation: how the density is split over weights; ERK by default.
        pattern: which positions may be active together.
        keep_dense: globs of the names of weights that get no mask.

    Examples:
        >>> import sparsify as sp
        >>> method = sp.methods.static_random(density=0.1, keep_dense=("head.*",))
        >>> method.initial, method.keep_dense
        ('random', ('head.*',))
    """
    return Method(
        name="static",
        density=density,
        initial="random",
        initial_scale=initial_scale,
        allocation=allocation,
        pattern=pattern,
        keep_dense=keep_dense,
    )
