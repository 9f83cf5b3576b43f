"""Inactive weights are 0 after every step, whatever the optimizer, its state and the gradients did."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sparsify.ir import Program
from sparsify.ir.nodes import multiplier, vouch


class Zeros:
    """Masks the weights of a program after each step, and vouches for them, so that lowered masks read them directly.

    Weights and masks are looked up in the tables of their modules, since ``program.to`` replaces masks.
    """

    def __init__(self, program: Program) -> None:
        self._slots = [(*_slot(program, name), _slot(program, f"{name}_mask")) for name in program.masks()]

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        for module, leaf, (owner, mask) in self._slots:
            value = module._parameters[leaf]
            kept = owner._buffers[mask]
            assert value is not None and kept is not None
            yield value, kept

    def keep(self) -> None:
        """Set inactive weights to 0."""
        pairs = list(self._pairs())
        if pairs:
            with torch.no_grad():
                torch._foreach_mul_(  # pyright: ignore[reportPrivateImportUsage]
                    [weight for weight, _ in pairs], [multiplier(mask, weight.dtype) for weight, mask in pairs]
                )

    def vouch(self) -> None:
        """Say that inactive weights are 0 now."""
        for weight, mask in self._pairs():
            vouch(weight, mask)


def _slot(program: Program, name: str) -> tuple[torch.nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    module: torch.nn.Module = program
    for part in path.split(".") if path else ():
        child = module._modules[part]
        assert child is not None
        module = child
    return module, leaf
