"""Static masks: exact budgets, random, never changed."""

from __future__ import annotations

import torch
from torch import nn

import sparsify as sp
from sparsify.parts.allocation import uniform


def masks(seed, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    program = sp.trace(model, (torch.randn(2, 6),)).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    trainer = sp.attach(sp.methods.static_random(density=0.5, **options), program, optimizer, total_steps=5, seed=seed)
    return program, optimizer, trainer


def test_budgets_by_hand():
    # ERK: raw (6 + 4) / 24 = 0.4167 and (4 + 3) / 12 = 0.5833; 18 positions over 0.4167 * 24 + 0.5833 * 12 = 17 -> scale 1.0588,
    # shares 10.59 and 7.41: 11 and 7.
    assert [int(mask.sum()) for mask in masks(0)[0].masks().values()] == [11, 7]
    assert [int(mask.sum()) for mask in masks(0, allocation=uniform)[0].masks().values()] == [12, 6]


def test_masks_are_those_of_the_seed_and_stay():
    first = {name: mask.clone() for name, mask in masks(3)[0].masks().items()}
    program, optimizer, trainer = masks(3)
    for _ in range(5):
        program(torch.randn(2, 6)).square().sum().backward()
        trainer.step()
        optimizer.zero_grad()
    assert all(torch.equal(first[name], mask) for name, mask in program.masks().items())
    assert trainer.counts["rounds"] == 0
    assert any(not torch.equal(first[name], mask) for name, mask in masks(4)[0].masks().items())
