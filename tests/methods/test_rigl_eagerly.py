"""RigL on a real network against an eager computation that shares no code with it: every mask, and every weight."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.ir import trace
from tests.cases import digits

STEPS, EVERY, STOP, FRACTION, LR, MOMENTUM, DECAY = 24, 4, 20, 0.3, 0.05, 0.9, 5e-4
BATCH = 32


def network() -> nn.Module:
    """Two convolutions with batch norms and two linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


def largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """True at the ``count`` largest, the earlier of equals first."""
    order = sorted(range(scores.numel()), key=lambda i: (-float(scores[i]), i))
    chosen = torch.zeros(scores.numel(), dtype=torch.bool)
    chosen[order[:count]] = True
    return chosen


class Eager:
    """RigL in an ordinary loop: dense leaf weights, ``weight * mask`` in the forward pass, SGD written out."""

    def __init__(self, masks: dict[str, torch.Tensor], *, replaces_step: bool, regrow_dropped: bool) -> None:
        self.model, self.replaces_step, self.regrow_dropped = network().train(), replaces_step, regrow_dropped
        self.masks = {name: mask.clone() for name, mask in masks.items()}
        self.velocity = {name: torch.zeros_like(p) for name, p in self.model.named_parameters()}
        for name, p in self.model.named_parameters():
            if name in masks:
                p.data *= masks[name]

    def step(self, step: int, x: torch.Tensor, y: torch.Tensor) -> None:
        leaves = dict(self.model.named_parameters())
        read = {
            name: (p * self.masks[name] if name in self.masks else p * 1).detach().requires_grad_()
            for name, p in leaves.items()
        }
        logits = torch.func.functional_call(self.model, read, (x,))
        gradients = dict(
            zip(read, torch.autograd.grad(nn.functional.cross_entropy(logits, y), read.values()), strict=True)
        )
        update = step % EVERY == 0 and step < STOP
        if not (update and self.replaces_step):
            for name, p in leaves.items():
                held = self.masks.get(name, torch.ones_like(p))
                gradient = gradients[name] * held + (DECAY * p.data if p.ndim > 1 else 0)
                self.velocity[name] = MOMENTUM * self.velocity[name] + gradient
                p.data -= LR * self.velocity[name]
        if update:
            for name in self.masks:
                self.exchange(name, leaves[name].data, gradients[name], step)

    def exchange(self, name: str, weight: torch.Tensor, gradient: torch.Tensor, step: int) -> None:
        mask = self.masks[name].flatten().bool()
        count = int(FRACTION / 2 * (1 + math.cos(math.pi * step / STOP)) * int(mask.sum()))
        if not self.regrow_dropped:
            count = min(count, int((~mask).sum()))  # no more are free
        magnitude = weight.flatten().abs().masked_fill(~mask, -1)
        kept = largest(magnitude, int(mask.sum()) - count)
        closed = kept if self.regrow_dropped else mask
        grown = largest(gradient.flatten().abs().masked_fill(closed, -1), count)
        new = (kept | grown).view_as(weight)
        fresh = new & ~mask.view_as(weight)
        self.velocity[name] = self.velocity[name].masked_fill(~new | fresh, 0)
        weight.mul_(new)
        self.masks[name] = new


@functools.cache
def traced() -> sp.Program:
    return trace(network(), (digits(2)[0],))


@pytest.mark.parametrize(("replaces_step", "regrow_dropped"), [(True, True), (True, False), (False, True)])
def test_every_mask_and_weight_of_a_run(replaces_step, regrow_dropped):
    x, y = digits(STEPS * BATCH)
    program = traced().clone()
    weights = [p for p in program.parameters() if p.ndim > 1]
    others = [p for p in program.parameters() if p.ndim == 1]
    groups = [{"params": weights, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM)
    method = sp.methods.rigl(
        density=0.2,
        update_every=EVERY,
        stop_at=STOP,
        drop_fraction=FRACTION,
        replaces_step=replaces_step,
        regrow_dropped=regrow_dropped,
    )
    trainer = sp.attach(method, program, optimizer, total_steps=STEPS, seed=0)
    program.train()
    first = {name: mask.clone() for name, mask in program.masks().items()}
    eager = Eager(first, replaces_step=replaces_step, regrow_dropped=regrow_dropped)
    for step in range(1, STEPS + 1):
        rows = slice((step - 1) * BATCH, step * BATCH)
        nn.functional.cross_entropy(program(x[rows]), y[rows]).backward()
        trainer.step()
        optimizer.zero_grad()
        eager.step(step, x[rows], y[rows])
        for name, mask in program.masks().items():
            assert torch.equal(mask, eager.masks[name].bool()), (step, name)
    moved = sum(int((mask & ~first[name]).sum()) for name, mask in program.masks().items())
    assert trainer.counts["rounds"] == 4 and moved > 100
    for name, p in eager.model.named_parameters():
        torch.testing.assert_close(program.get_parameter(name).detach(), p.detach(), rtol=1e-4, atol=1e-5)
