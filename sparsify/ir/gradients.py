"""Gradients masked where they arrive at a weight, in place where nobody else holds them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from sparsify.ir.nodes import masked_gradient

HOLDERS = 2
"""References to a gradient in a hook that has it for itself: the engine's and the hook's."""
COUNTED = hasattr(Tensor, "_use_count")
"""Whether this torch says how many hold a tensor; where it does not, gradients are copied."""


def mask_gradient(weight: Tensor, current: Callable[[], Tensor | None]) -> RemovableHandle:
    """Mask every gradient that arrives at a leaf from now on, so that no forward pass has to.

    A hook that stays costs a step of a small network less than a view with a new hook per forward pass.

    Args:
        weight: a leaf that requires gradients.
        current: its mask, bool of its shape, or None where gradients should pass as they are now.
    """

    def masked(gradient: Tensor) -> Tensor | None:
        mask = current()
        if mask is None:
            return None
        return masked_gradient(gradient, mask=mask, in_place=_is_owned(gradient))

    return weight.register_hook(masked)


def _is_owned(gradient: Tensor) -> bool:
    """Whether a gradient that a hook was given is held by nobody else, so that it may be written to.

    The engine and the hook hold it, and what it is a view of is held by it and by this call. A gradient that arrives elsewhere as well,
    such as both terms of a sum of weights, has a holder more.
    """
    if not COUNTED or gradient._use_count() > HOLDERS:  # pyright: ignore[reportAttributeAccessIssue]
        return False
    base = gradient._base
    return base is None or base._use_count() <= HOLDERS  # pyright: ignore[reportAttributeAccessIssue]
