"""Spiking networks as users write them, for digits: a loop, snntorch's neurons, and neurons with a state of their own."""

from __future__ import annotations

from collections.abc import Callable

import snntorch
import torch
from torch import Tensor, nn

ALPHA = 2.0


class Loop(nn.Module):
    """A leaky integrate-and-fire network written out: u = beta v + x, soft reset, ordinary operators only."""

    def __init__(self, steps: int = 4, beta: float = 0.5) -> None:
        super().__init__()
        self.steps, self.beta = steps, beta
        self.conv = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.fc1, self.fc2 = nn.Linear(8 * 16, 32), nn.Linear(32, 10)

    def fired(self, current: Tensor, potential: Tensor) -> tuple[Tensor, Tensor]:
        charged = self.beta * potential + current
        x = charged - 1.0
        soft = torch.atan(torch.pi * x) / torch.pi + 0.5
        spike = (x >= 0).to(x.dtype) + (soft - soft.detach())
        return spike, charged - spike

    def forward(self, image: Tensor) -> Tensor:
        current = 2 * self.bn(self.conv(image))
        first = torch.zeros_like(current)
        second = total = 0.0
        for _ in range(self.steps):
            spike, first = self.fired(current, first)
            spike, second = self.fired(4 * self.fc1(torch.max_pool2d(spike, 2).flatten(1)), second)
            total = total + self.fc2(spike)
        return total / self.steps


class Leaky(nn.Module):
    """snntorch's neuron, with the state passed explicitly. Its reset comes a step late, and it fires above its threshold."""

    def __init__(self, steps: int = 4, **options) -> None:
        super().__init__()
        self.steps = steps
        self.fc1, self.fc2 = nn.Linear(64, 48), nn.Linear(48, 10)
        self.first, self.second = (snntorch.Leaky(**{"beta": 0.8, **options}) for _ in range(2))

    def forward(self, image: Tensor) -> Tensor:
        current = self.fc1(4 * image.flatten(1))
        one, two, total = torch.zeros_like(current), image.new_zeros(image.shape[0], 10), 0
        for _ in range(self.steps):
            spike, one = self.first(current, one)
            spike, two = self.second(self.fc2(spike), two)
            total = total + spike + two / 10
        return total / self.steps


class ATan(torch.autograd.Function):
    """A spike with the usual surrogate, in the style of libraries: ``forward`` without a context."""

    @staticmethod
    def forward(x, alpha):
        return (x >= 0).to(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.alpha = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, gradient):
        x = torch.pi / 2 * ctx.alpha * ctx.saved_tensors[0]
        return ctx.alpha / 2 / (1 + x * x) * gradient, None


class LIFNode(nn.Module):
    """A neuron that keeps its potential in an attribute, as in layers of spikingjelly."""

    def __init__(self, tau=2.0, decay_input=True, v_reset: float | None = 0.0, detach_reset=False) -> None:
        super().__init__()
        self.tau, self.decay_input, self.v_reset, self.detach_reset = tau, decay_input, v_reset, detach_reset
        self.fire: Callable[..., Tensor] = ATan.apply  # bound before anything is traced
        self.v: Tensor | float = 0.0

    def reset(self) -> None:
        self.v = 0.0 if self.v_reset is None else self.v_reset

    def forward(self, x: Tensor) -> Tensor:
        rest = self.v_reset or 0.0
        leak = (self.v - rest) / self.tau
        self.v = self.v - leak + (x / self.tau if self.decay_input else x)
        spike = self.fire(self.v - 1.0, ALPHA)
        seen = spike.detach() if self.detach_reset else spike
        self.v = self.v - seen if self.v_reset is None else (1 - seen) * self.v + seen * self.v_reset
        return spike


class Nodes(nn.Module):
    def __init__(self, steps: int = 4, *, fresh: bool = True, **options) -> None:
        super().__init__()
        self.steps, self.fresh = steps, fresh
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 48),
            LIFNode(**options),
            nn.Linear(48, 32),
            LIFNode(**options),
            nn.Linear(32, 10),
        )
        with torch.no_grad():  # so that the second neurons fire from the start
            self.layers.get_parameter("3.weight").mul_(6)

    def forward(self, image: Tensor) -> Tensor:
        if self.fresh:
            for node in self.layers:
                if isinstance(node, LIFNode):
                    node.reset()
        return torch.stack([self.layers(8 * image) for _ in range(self.steps)]).mean(0)
