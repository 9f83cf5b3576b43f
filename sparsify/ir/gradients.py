"""Mask gradients when they arrive at a weight: in place if nothing else holds the gradient, else in a copy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from sparsify.parts.clearing import PIECE, in_pieces

KEPT_AS_NUMBERS = 1 << 16
"""Masks with at most this many positions are also stored in the weight's dtype, in which multiplying is twice as fast as with bytes."""
HOLDERS = 2
"""Number of references to a gradient that nothing else holds, inside a hook: the engine's and the hook's."""
COUNTED = hasattr(Tensor, "_use_count")
"""Whether this version of torch counts the references to a tensor; if not, gradients are copied."""


def mask_gradient(weight: Tensor, current: Callable[[], Tensor | None]) -> RemovableHandle:
    """Register a hook that masks every gradient arriving at a leaf, so that no forward pass has to.

    For a small network, a permanent hook costs less time per step than a view with a new hook per forward pass.

    Args:
        weight: a leaf that requires gradients.
        current: returns the mask, bool of the weight's shape, or None while gradients should pass unchanged.
    """

    def masked(gradient: Tensor) -> Tensor | None:
        mask = current()
        return None if mask is None else _masked(gradient, mask)

    return weight.register_hook(masked)


def masks_its_gradient(weight: Tensor, mask: Tensor) -> bool:
    """Return whether a hook registered by `mask_gradient` masks every gradient that arrives at the weight."""
    hooks = weight._backward_hooks
    return hooks is not None and mask.__dict__.get("hook") in hooks


def with_masked_gradient(value: Tensor, mask: Tensor) -> Tensor:
    """Return a view with a masked gradient of a value that is already 0 where inactive.

    The view has a hook. A Python autograd function would cost twice as much, which slows down steps of small networks.
    """
    if torch.compiler.is_compiling():
        return value * mask
    if masks_its_gradient(value, mask):
        return value
    view = value.view_as(value)
    if view.requires_grad:
        view.register_hook(lambda gradient: _masked(gradient, mask))
    return view


def multiplier(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a mask into the form in which it multiplies a tensor of ``dtype`` in place.

    A small mask becomes numbers of that dtype, which are cached until the mask is written to. A large one is viewed as bytes, which torch
    casts faster than bools.

    Args:
        mask: bool, any shape.
        dtype: dtype of the tensor to be multiplied.
    """
    if mask.numel() > KEPT_AS_NUMBERS or not mask.is_cpu:
        return mask.view(torch.int8)
    kept = mask.__dict__.get("as_numbers")
    if kept is None or kept[0] != mask._version or kept[1].dtype is not dtype:
        kept = mask.as_numbers = (mask._version, mask.to(dtype))  # type: ignore[attr-defined]
    return kept[1]


def _masked(gradient: Tensor, mask: Tensor) -> Tensor:
    """Compute ``gradient * mask``, in the gradient's memory if nothing else holds it and no graph of the backward pass is being built."""
    if torch.is_grad_enabled() or gradient.layout is not torch.strided or not _is_owned(gradient):
        return gradient * mask
    if gradient.numel() <= PIECE or not gradient.is_contiguous() or not mask.is_contiguous():
        return gradient.mul_(multiplier(mask, gradient.dtype))
    # torch casts the whole mask before it multiplies; with small pieces, the cast values stay in the processor's cache.
    for values, kept in in_pieces(gradient, mask):
        values.mul_(kept)
    return gradient


def _is_owned(gradient: Tensor) -> bool:
    """Return whether nothing else holds the gradient that a hook received, so that the hook may write to it.

    The engine and the hook each hold one reference. If the gradient is a view, the view and this call hold one reference to its base. A
    gradient that also arrives elsewhere, as for both terms of a sum of weights, has one more reference.
    """
    if not COUNTED or gradient._use_count() > HOLDERS:  # pyright: ignore[reportAttributeAccessIssue]
        return False
    base = gradient._base
    return base is None or base._use_count() <= HOLDERS  # pyright: ignore[reportAttributeAccessIssue]
