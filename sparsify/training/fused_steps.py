"""Lets SGD step by torch's fused implementation on the CPU, which reads the memory once and not once per operation.

torch does not choose that implementation by itself. It computes the same formula with the same rounding, except for the last positions of
a tensor, fewer than fill a register of the processor: there it may round once in place of twice.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

PRECISIONS = (torch.float32, torch.float64)


def may_be_fused(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> bool:
    """Return whether a parameter group is one of SGD, and leaves the choice of an implementation to torch (``foreach``, ``fused``)."""
    if type(optimizer) is not torch.optim.SGD or group["fused"] is not None or group["foreach"] is not None:
        return False
    return not any([isinstance(value, Tensor) for value in group.values()])


@contextmanager
def fused(optimizer: torch.optim.Optimizer) -> Generator[None]:
    """Within the block, let an optimizer use the fused implementation for the parameter groups that it computes rightly."""
    groups = [group for group in optimizer.param_groups if may_be_fused(optimizer, group) and _are_plain(group)]
    if groups and not _is_plain(optimizer.state):
        groups = []
    for group in groups:
        group["fused"] = True
    try:
        yield
    finally:
        for group in groups:
            group["fused"] = None


def _is_plain(state: Mapping[Any, Mapping[str, Any]]) -> bool:
    """Return whether all momentum is contiguous."""
    found = [entry.get("momentum_buffer") for entry in state.values()]
    return all([momentum is None or momentum.is_contiguous() for momentum in found])


def _are_plain(group: Mapping[str, Any]) -> bool:
    """Return whether weights and gradients of a group are contiguous, in a common precision, and on the CPU.

    The fused implementation reads weight, gradient and momentum in the order of their memory, and does not check that it is the same.
    """
    for weight in group["params"]:
        gradient = weight.grad
        if gradient is None:
            continue
        if not weight.is_cpu or weight.dtype not in PRECISIONS or gradient.layout is not torch.strided:
            return False
        if not weight.is_contiguous() or not gradient.is_contiguous():
            return False
    return True
