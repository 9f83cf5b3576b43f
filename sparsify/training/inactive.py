"""Sets inactive weights to 0, and what the optimizer remembers of them."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsify.ir import Program
from sparsify.parts.clearing import clear
from sparsify.training.optimizers import Optimizers


def clear_inactive(program: Program, optimizer: Optimizers, name: str, *, grown: Tensor | None = None) -> None:
    """Set inactive weights and their gradients to 0, and optimizer state of inactive or newly grown positions; no other code does."""
    weight, inactive = program.get_parameter(name), ~program.mask(name)
    with torch.no_grad():
        clear([weight] if weight.grad is None else [weight, weight.grad], inactive)
        if grown is not None:
            inactive |= grown
        state = optimizer.state.get(weight, {}).values()
        clear([value for value in state if isinstance(value, Tensor) and value.shape == weight.shape], inactive)
