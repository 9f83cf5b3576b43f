"""Operators of layers that are stored compact: only the active weights [O, k, *K] exist, with the inputs that each group reads.

They compute what the dense layer computes from the masked weight, up to rounding. `sparsify.ir.compaction` puts them into the graphs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsify.ir.nodes import GradientTap

MOST_KEPT = 4
"""Products that a tap keeps before it sums them up."""
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


def compact_linear(
    input: Tensor,
    weight: Tensor,
    inputs: Tensor,
    bias: Tensor | None = None,
    places: Tensor | None = None,
    any_order: bool = False,
) -> Tensor:
    """Compute a linear layer whose groups of outputs each read a selection of the inputs.

    Args:
        input: [..., I].
        weight: [O, k], the outputs of each group one after another.
        inputs: int64 [G, k], the inputs that each of the G groups reads.
        bias: [O] in the natural order of the outputs, or None.
        places: int64 [O], the row of ``weight`` that holds each output; None: its rows are in the natural order.
        any_order: the outputs need not be contiguous; they are then, but for their shape, the transpose of a contiguous [O, N].

    Returns:
        The outputs, [..., O].
    """
    groups, kept = inputs.shape
    if input.ndim > 1 and (any_order or _is_transposed(input)):
        made = _by_columns(input.reshape(-1, input.shape[-1]), weight, inputs, bias, places)
        return (made if any_order else made.contiguous()).view(*input.shape[:-1], -1)
    chosen = input.reshape(-1, input.shape[-1]).index_select(1, inputs.flatten()).view(-1, groups, kept)
    weights = weight.view(groups, -1, kept).transpose(1, 2)
    if bias is None or places is not None:
        made = torch.bmm(chosen.transpose(0, 1), weights)
    else:
        made = torch.baddbmm(bias.view(groups, 1, -1), chosen.transpose(0, 1), weights)
    made = made.transpose(0, 1).reshape(*input.shape[:-1], len(weight))
    if places is None:
        return made
    made = made.index_select(-1, places)
    return made if bias is None else made + bias


def _is_transposed(value: Tensor) -> bool:
    """Return whether values [..., I] are the transpose of a contiguous [I, N]."""
    return value.stride(-1) == value.numel() // value.shape[-1] > 1 and value.stride(-2) == 1


def _by_columns(input: Tensor, weight: Tensor, inputs: Tensor, bias: Tensor | None, places: Tensor | None) -> Tensor:
    """Compute `compact_linear` for samples [N, I], with each feature in adjacent memory.

    An input is then selected by copying one piece of memory. The next layer finds its input in this form, because functions that work on
    each value keep the order of memory. Where no layer before or after has this form, transposing takes longer than it saves.
    """
    groups, kept = inputs.shape
    chosen = input.t().contiguous().index_select(0, inputs.flatten()).view(groups, kept, -1)
    weights = weight.view(groups, -1, kept)
    if bias is None or places is not None:
        made = torch.bmm(weights, chosen)
    else:
        made = torch.baddbmm(bias.view(groups, -1, 1), weights, chosen)
    made = made.view(len(weight), -1)
    if places is not None:
        made = made.index_select(0, places)
        made = made if bias is None else made + bias.unsqueeze(1)
    return made.t()


def compact_conv(
    input: Tensor,
    weight: Tensor,
    inputs: Tensor,
    bias: Tensor | None = None,
    places: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Tensor:
    """Compute a convolution whose groups of outputs each read a selection of the input channels.

    Args:
        input: [N, I, *S] with one to three spatial dimensions, or [I, *S].
        weight: [O, k, *K], the outputs of each group one after another.
        inputs: int64 [G, k], the channels that each of the G groups reads.
        bias: [O] in the natural order of the outputs, or None.
        places: as for `compact_linear`.
        stride, padding, dilation: as for the dense convolution.
        groups: of the dense convolution, always 1.

    Returns:
        The outputs, [N, O, *S'] or [O, *S'].
    """
    del groups
    channels = input.ndim - weight.ndim + 1
    chosen = input.index_select(channels, inputs.flatten())
    convolution: Any = _CONVOLUTIONS[weight.ndim - 3]
    made = convolution(chosen, weight, bias if places is None else None, stride, padding, dilation, len(inputs))
    if places is None:
        return made
    made = made.index_select(channels, places)
    return made if bias is None else made + bias.view(-1, *(1,) * (weight.ndim - 2))


COMPACT_OPERATORS = {compact_linear: "linear", compact_conv: "conv"}
"""Kind of product by operator."""


@dataclass(frozen=True)
class _Product:
    """What the dense gradient of a weight is computed from: the input of a layer and the gradient of its output."""

    values: Tensor
    gradient: Tensor
    shape: tuple[int, ...]
    options: tuple[Any, ...]

    def is_bounded(self) -> bool:
        """Return whether the largest value, the largest gradient and the number of terms say that every sum of `MOST_KEPT` is finite."""
        terms = MOST_KEPT * self.gradient.numel() / self.shape[0]
        largest = [float(each.abs().max()) for each in (self.values, self.gradient) if each.numel()]
        return math.prod(largest) * terms < torch.finfo(self.values.dtype).max

    def dense(self) -> Tensor:
        """Compute the gradient of the weight [O, I, *K]."""
        values, gradient, shape = self.values, self.gradient, self.shape
        if gradient.dtype is not values.dtype:  # under autocast
            values, gradient = values.float(), gradient.float()
        if len(shape) == 2:
            return gradient.reshape(-1, shape[0]).T @ values.reshape(-1, shape[1])
        stride, padding, dilation = (_each(option, len(shape) - 2) for option in self.options)
        if values.ndim < len(shape):
            values, gradient = values.unsqueeze(0), gradient.unsqueeze(0)
        return torch.ops.aten.convolution_backward(
            gradient, values, values.new_empty(1).expand(shape), None, stride, padding, dilation, False,
            [0] * (len(shape) - 2), 1, (False, True, False),
        )[1]  # fmt: skip


class ProductTap(GradientTap):
    """The tap of a compact weight: when armed, it keeps what the dense gradient is computed from, and computes it when it is read.

    It stands after each layer that reads the weight. The input and the output's gradient of a layer take less memory than the dense
    gradients of all weights, so that a round can compute those one after the other.
    """

    holds_in_grad = False

    def __init__(self) -> None:
        self.products = list[_Product]()
        super().__init__()

    def forward(self, value: Tensor, *given: Any) -> Tensor:
        """Return ``value``, the output of a layer. ``given``: its input, the mask of its weight, and the options of a convolution."""
        if not (self.armed and value.requires_grad):
            return value
        return _Watch.apply(value, given[0], (tuple(given[1].shape), given[2:]), self)  # type: ignore[no-any-return]

    @property
    def arrived(self) -> bool:
        return bool(self.products) or super().arrived

    @property
    def gradient(self) -> Tensor | None:
        terms = [product.dense() for product in self.products]
        terms += [] if self.recorded is None else [self.recorded]
        return sum(terms[1:], terms[0]) if terms else None

    def is_bounded(self) -> bool:
        return self.recorded is None and all([product.is_bounded() for product in self.products])

    def clear(self) -> None:
        super().clear()
        self.products = []

    def record(self, product: _Product) -> None:
        """Keep a product; several are summed up, because each keeps activations in memory."""
        if len(self.products) == MOST_KEPT:
            self.recorded, self.products = self.gradient, []
        self.products.append(product)


class _Watch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, values: Tensor, options: tuple[Any, ...], tap: ProductTap) -> Tensor:
        ctx.save_for_backward(values)
        ctx.options, ctx.tap = options, tap
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (values,) = ctx.saved_tensors
        ctx.tap.record(_Product(values.detach(), grad_outputs[0].detach(), *ctx.options))
        return grad_outputs[0], None, None, None


def _each(option: Any, count: int) -> list[int]:
    listed = list(option) if isinstance(option, (list, tuple)) else [option]
    return listed * count if len(listed) == 1 else listed
