"""What a program is made of: stages, tensor specs, sites, and the three operators that are ours."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class Stage(enum.Enum):
    """How far a program has come. Each stage has its rules (`sparsify.ir.verifier`)."""

    TRACED = "traced"
    MASKED = "masked"
    FOLDED = "folded"


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of a value. A dynamic dimension is text: ``"N"`` is the batch, ``"2*N"`` twice of it."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    def __str__(self) -> str:
        short = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16"}.get(self.dtype, self.dtype)
        short = short.replace("int", "i") if short.startswith(("int", "uint")) else short
        return f"{short}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class WeightSite:
    """A weight that takes part in a matrix product.

    Attributes:
        name: fully qualified name, the user's own (the first one, where several names are tied).
        kind: ``linear``, ``conv``, ``matmul`` or ``embedding``.
        shape: of the weight; [O, I, *K] for linear and conv.
        owner: qualified name of the module that used it first.
        macs: multiply-accumulates per example over all uses; 0 for an embedding.
        uses: number of nodes that consume it.
        groups: of a convolution, else 1.
        skip: why `insert-masks` keeps it dense unless told otherwise, or None.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    owner: str
    macs: int
    uses: int
    groups: int = 1
    skip: str | None = None


@dataclass(frozen=True)
class MaskSite:
    """A weight with a mask: qualified names of both, the pattern's spelling, and dense MACs per example."""

    weight: str
    mask: str
    pattern: str
    macs: int


@dataclass(frozen=True)
class Costs:
    """Counts of a program. MACs are per example; ``density`` is active / maskable (1.0 without masks)."""

    params: int
    maskable: int
    active: int
    macs_dense: int
    macs_active: int

    @property
    def density(self) -> float:
        return self.active / self.maskable if self.maskable else 1.0


def apply_mask(weight: Tensor, mask: Tensor, pattern: str) -> Tensor:
    """``weight * mask``: the reference semantics of a mask. ``pattern`` documents which positions may be active together."""
    del pattern
    return weight * mask


class _MaskedView(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return grad_outputs[0] * mask, None


def masked_view(weight: Tensor, mask: Tensor, pattern: str) -> Tensor:
    """`apply_mask` for a weight that is already 0 where inactive: reads it directly, masks only its gradient."""
    del pattern
    return _MaskedView.apply(weight, mask)  # type: ignore[no-any-return]


MASK_OPERATORS = (apply_mask, masked_view)


class GradientTap(nn.Module):
    """Records the dense gradient dL/d(weight × mask) of the value that flows through, when armed.

    Attributes:
        armed: record in the backward pass of forwards made from now on.
        gradient: the sum recorded since the last `clear`, or None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.armed = False
        self.gradient: Tensor | None = None

    def forward(self, value: Tensor) -> Tensor:
        return _Record.apply(value, self) if self.armed and value.requires_grad else value  # type: ignore[no-any-return]

    def clear(self) -> None:
        self.gradient = None


class _Record(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, tap: GradientTap) -> Tensor:
        ctx.tap = tap
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        gradient = grad_outputs[0]
        tap: GradientTap = ctx.tap
        tap.gradient = gradient.detach().clone() if tap.gradient is None else tap.gradient + gradient.detach()
        return gradient, None
