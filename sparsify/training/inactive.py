"""Sets inactive weights to 0, and what the optimizer remembers of them."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsify.ir import Program
from sparsify.parts.clearing import clear
from sparsify.training.optimizers import Optimizers


def clear_inactive(program: Program, optimizer: Optimizers, name: str, *, grown: Tensor | None = None) -> None:
    """Set inactive and newly grown weights, and their optimizer state, to 0, and gradients of inactive ones; no other code does."""
    weight, inactive = program.get_parameter(name), ~program.mask(name)
    with torch.no_grad():
        clear([] if weight.grad is None else [weight.grad], inactive)
        if grown is not None:
            inactive |= grown
        clear([weight], inactive)
        state = optimizer.state.get(weight, {}).values()
        clear([value for value in state if isinstance(value, Tensor) and value.shape == weight.shape], inactive)
