"""Spiking networks written by hand, as a user writes them: for what methods do where a layer never fires."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def spike(potential: Tensor) -> Tensor:
    """1 from the threshold on, else 0; its gradient is that of an arctangent."""
    soft = torch.atan(math.pi * potential) / math.pi + 0.5
    return (potential >= 0).to(potential.dtype) + (soft - soft.detach())


class Spiking(nn.Module):
    """A convolution with batch norm and a linear layer without, each followed by neurons with a leak and a hard reset to 0.

    The mean of the logits over the steps is returned. Of the ``second`` layer, few or no neurons fire: nothing scales its inputs.
    """

    def __init__(self, steps: int, leak: float = 0.5) -> None:
        super().__init__()
        self.steps, self.leak = steps, leak
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.last = nn.Linear(128, 48, bias=False), nn.Linear(48, 10)

    def rates(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [N, 10], and the share of neurons of each of the two layers that fired, over steps and samples."""
        current = self.norm(self.first(x))
        low, high = torch.zeros_like(current), torch.zeros_like(current.flatten(1)[:, :48])
        logits, fired, fired_high = [], [], []
        for _ in range(self.steps):
            low = self.leak * low + current
            out = spike(low - 1)
            low = low * (1 - out)
            high = self.leak * high + self.second(torch.max_pool2d(out, 2).flatten(1))
            above = spike(high - 1)
            high = high * (1 - above)
            logits.append(self.last(above))
            fired.append(out)
            fired_high.append(above)
        return sum(logits) / self.steps, torch.stack(fired).mean(), torch.stack(fired_high).mean()

    def forward(self, x: Tensor) -> Tensor:
        return self.rates(x)[0]


def spiking(steps: int) -> Spiking:
    torch.manual_seed(0)
    return Spiking(steps)
