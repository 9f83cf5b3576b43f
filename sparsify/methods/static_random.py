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
    """Random masks of exact budgets, fixed for the whole run: what topology updates have to beat.

    Args:
        density: of the whole run.
        initial_scale: ``none`` is the published code; ``fan-in`` keeps the variance of each output at the start.
        allocation: ERK by default.
        pattern: which positions may be active together.
        keep_dense: globs of weights without a mask.

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
