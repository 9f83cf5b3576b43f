"""One linear layer whose weights and gradients are written by hand."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import sparsify as sp


@functools.cache
def traced(outputs: int, inputs: int) -> sp.Program:
    """Traced once by shape; every layer takes a copy."""
    return sp.trace(nn.Linear(inputs, outputs, bias=False), (torch.eye(inputs),))


class OneLayer:
    """Weights [O, I] under a method; ``step(gradient)`` gives them that dense gradient and steps. The learning rate is ``lr``."""

    def __init__(
        self, method: sp.Method, weights: Sequence[Sequence[float]], *, total_steps: int, lr: float = 0.0, seed: int = 0
    ) -> None:
        self.values = values = torch.tensor(weights)
        self.x = torch.eye(values.shape[1])
        self.program = traced(*values.shape).clone().train()
        with torch.no_grad():
            self.program.weight("weight").copy_(values)
        self.optimizer = torch.optim.SGD(self.program.parameters(), lr=lr)
        self.trainer = sp.attach(method, self.program, self.optimizer, total_steps=total_steps, seed=seed)

    @property
    def weight(self) -> Tensor:
        return self.program.weight("weight").detach()

    @property
    def mask(self) -> Tensor:
        return self.program.mask("weight")

    def set_mask(self, rows: Sequence[Sequence[int]]) -> None:
        """Replace the mask of the start; weights are as written where it is on, and 0 elsewhere."""
        self.mask.copy_(torch.tensor(rows).bool())
        with torch.no_grad():
            self.program.weight("weight").copy_(self.values * self.mask)
        self.trainer._rounds.start()

    def step(self, gradient: Sequence[Sequence[float]] | None = None) -> None:
        """One step whose dense gradient dL/dw is ``gradient`` (0 by default): with x the identity, the outputs are the weights."""
        wanted = torch.zeros_like(self.weight) if gradient is None else torch.tensor(gradient)
        (self.program(self.x) * wanted.T).sum().backward()
        self.trainer.step()
        self.optimizer.zero_grad()
