"""Dense training: the baseline everything is compared with."""

from __future__ import annotations

from sparsify.methods.base import Method, checked_method


@checked_method
def dense() -> Method:
    """Train without masks.

    Examples:
        >>> import sparsify as sp
        >>> sp.methods.dense().density
        1.0
    """
    return Method(name="dense", density=1.0, initial="dense")
