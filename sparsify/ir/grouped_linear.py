"""The operator ``sparsify::grouped_linear``: a linear layer as one batched product of small matrices, over feature-major values.

PyTorch can run it, and exporters translate it. The graph thus states which layer is packed and how, so no code has to guess from shapes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _computed(values: Tensor, weight: Tensor, inputs: Tensor | None, bias: Tensor | None, chunk: int) -> Tensor:
    width = values.shape[-1]
    if inputs is not None:
        values = values.reshape(-1, chunk, width).index_select(0, inputs.flatten())
    product = torch.matmul(weight, values.reshape(*weight.shape[:-2], weight.shape[-1], width))
    made = product.reshape(-1, width)
    return made if bias is None else made + bias.unsqueeze(1)


@torch.library.custom_op(
    "sparsify::grouped_linear",
    mutates_args=(),
    schema="(Tensor values, Tensor weight, Tensor? inputs, Tensor? bias, int chunk) -> Tensor",
)
def grouped_linear(values: Tensor, weight: Tensor, inputs: Tensor | None, bias: Tensor | None, chunk: int) -> Tensor:
    """Compute a linear layer whose groups of outputs each read their own selection of inputs.

    Args:
        values: [F, M], F features of M columns of a batch.
        weight: [G, O, K] for G groups of O outputs that read K inputs each, or [O, K] for one group.
        inputs: int64 [G, K / chunk], or [K / chunk] for one group: which runs of ``chunk`` rows of ``values`` a group reads. None: group g
            reads the g-th block of K rows.
        bias: [G * O], or None.
        chunk: rows per run, at least 1; must divide K.

    Returns:
        The outputs, [G * O, M].
    """
    return _computed(values, weight, inputs, bias, chunk)


GROUPED_LINEAR: torch._ops.OpOverload = torch.ops.sparsify.grouped_linear.default


@grouped_linear.register_fake
def _(values: Tensor, weight: Tensor, inputs: Tensor | None, bias: Tensor | None, chunk: int) -> Tensor:
    return values.new_empty((weight.shape[:-1].numel(), values.shape[-1]))


def _kept(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.given = inputs


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    values, weight, inputs, bias, chunk = ctx.given
    with torch.enable_grad():
        values, weight = (x.detach().requires_grad_() for x in (values, weight))
        bias = None if bias is None else bias.detach().requires_grad_()
        made = _computed(values, weight, inputs, bias, chunk)
        found = torch.autograd.grad(made, [x for x in (values, weight, bias) if x is not None], gradient)
    return found[0], found[1], None, found[2] if bias is not None else None, None


grouped_linear.register_autograd(_gradients, setup_context=_kept)
