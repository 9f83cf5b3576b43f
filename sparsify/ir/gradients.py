"""Gradients masked where they arrive, in place where nobody else holds them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

PIECE = 1 << 18
"""Positions masked at a time."""
KEPT_AS_NUMBERS = 1 << 16
"""Masks of at most this many positions are also kept as numbers of the weight's type, which multiply twice as fast as bytes."""
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
        return None if mask is None else _masked(gradient, mask)

    return weight.register_hook(masked)


def masks_its_gradient(weight: Tensor, mask: Tensor) -> bool:
    """Whether a hook of the weight itself, registered by `mask_gradient`, masks every gradient that arrives there."""
    hooks = weight._backward_hooks
    return hooks is not None and mask.__dict__.get("hook") in hooks


def with_masked_gradient(value: Tensor, mask: Tensor) -> Tensor:
    """A view of a value that is 0 where inactive, whose gradient is masked.

    By a hook: a Python autograd function costs twice as much, which a step of a small network feels.
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
    """A mask as what a tensor of ``dtype`` is multiplied by in place: numbers where it is small, made anew after each write to it; bytes
    otherwise, which torch casts faster than bools.

    Args:
        mask: bool, any shape.
        dtype: of the tensor.
    """
    if mask.numel() > KEPT_AS_NUMBERS or not mask.is_cpu:
        return mask.view(torch.int8)
    kept = mask.__dict__.get("as_numbers")
    if kept is None or kept[0] != mask._version or kept[1].dtype is not dtype:
        kept = mask.as_numbers = (mask._version, mask.to(dtype))  # type: ignore[attr-defined]
    return kept[1]


def _masked(gradient: Tensor, mask: Tensor) -> Tensor:
    """``gradient * mask``, in the gradient's own memory where nobody else holds it and no graph of the backward is being built."""
    if torch.is_grad_enabled() or gradient.layout is not torch.strided or not _is_owned(gradient):
        return gradient * mask
    if gradient.numel() <= PIECE or not gradient.is_contiguous() or not mask.is_contiguous():
        return gradient.mul_(multiplier(mask, gradient.dtype))
    # torch casts the whole mask before it multiplies; in pieces the casts stay in the cache.
    pieces = zip(gradient.view(-1).split(PIECE), mask.view(torch.int8).view(-1).split(PIECE), strict=True)
    for values, kept in pieces:
        values.mul_(kept)
    return gradient


def _is_owned(gradient: Tensor) -> bool:
    """Whether a gradient that a hook was given is held by nobody else, so that it may be written to.

    The engine and the hook hold it, and what it is a view of is held by it and by this call. A gradient that arrives elsewhere as well,
    such as both terms of a sum of weights, has a holder more.
    """
    if not COUNTED or gradient._use_count() > HOLDERS:  # pyright: ignore[reportAttributeAccessIssue]
        return False
    base = gradient._base
    return base is None or base._use_count() <= HOLDERS  # pyright: ignore[reportAttributeAccessIssue]
