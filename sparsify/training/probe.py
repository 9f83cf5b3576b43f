"""A probe: the loss and gradients of the current batch at other parameter values. It leaves no trace but its count."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sparsify.ir import Program

Closure = Callable[[], Tensor]
"""The loss of the current batch, a scalar, by a forward pass of the program in train mode; no backward pass."""


def probe(program: Program, closure: Closure, at: Mapping[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Evaluate ``closure`` at parameter values ``at``, then put parameters, buffers and gradients back, bit for bit.

    Args:
        program: in train mode.
        closure: see `Closure`.
        at: values by parameter name; missing ones stay as they are. Read as 0 where a mask is off.

    Returns:
        The loss, and the gradient of every trainable parameter that has one.
    """
    parameters = {name: p for name, p in program.named_parameters() if p.requires_grad}
    values = {name: parameters[name].detach().clone() for name in at or {}}
    buffers = {name: buffer.detach().clone() for name, buffer in program.named_buffers()}
    masks = program.masks()
    try:
        with torch.no_grad():
            for name, value in (at or {}).items():
                parameters[name].copy_(value * masks[name] if name in masks else value)
        loss = closure()
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    finally:
        with torch.no_grad():
            for name, value in values.items():
                parameters[name].copy_(value)
            for name, buffer in program.named_buffers():
                buffer.copy_(buffers[name])
    return loss.detach(), {name: g for name, g in zip(parameters, found, strict=True) if g is not None}
