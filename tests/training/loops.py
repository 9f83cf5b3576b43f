"""A small loop of digits, and what is looked at in it."""

from __future__ import annotations

import torch
from torch import nn

import sparsify as sp
from tests.cases import digits

X, Y = digits(64)


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10))


TRACED = sp.trace(mlp(), (X[:2],))


def started(method, *, make=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), total=12, program=None, **given):
    program = (TRACED.clone() if program is None else program).train()
    optimizer = make(program.parameters())
    return program, optimizer, sp.attach(method, program, optimizer, total_steps=total, **given)


def loss(program):
    return nn.functional.cross_entropy(program(X), Y)


def run(program, optimizer, trainer, steps):
    for _ in range(steps):
        loss(program).backward()
        trainer.step()
        optimizer.zero_grad()


def strays(program):
    return sum(int(((program.weight(n) != 0) & ~mask).sum()) for n, mask in program.masks().items())


def rigl(**options):
    return sp.methods.rigl(**{"density": 0.2, "update_every": 3, **options})
