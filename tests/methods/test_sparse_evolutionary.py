"""SET: drops by magnitude, grows anywhere but where it dropped."""

from __future__ import annotations

import torch
from torch import nn

import sparsify as sp
from sparsify.methods import set as sparse_evolutionary


def attached(seed: int):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4, bias=False))
    program = sp.trace(model, (torch.ones(2, 8),)).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.0)
    method = sparse_evolutionary(density=0.25, update_every=1, stop_at=10, drop_fraction=0.5)
    trainer = sp.attach(method, program, optimizer, total_steps=10, seed=seed)
    return program, trainer


def test_a_round_drops_the_smallest_and_grows_elsewhere():
    grown = []
    for seed in range(5):
        program, trainer = attached(seed)
        weight, before = program.weight("0.weight").detach().clone(), program.mask("0.weight").clone()
        assert not program.taps(), "random growth needs no dense gradient"
        program(torch.ones(2, 8)).sum().backward()
        trainer.step()
        after = program.mask("0.weight")
        # Of 8 active positions int(0.25 (1 + cos(pi/10)) * 8) = 3 are dropped.
        values = weight[before].abs().sort().values
        assert torch.equal((before & ~after).nonzero(), (before & (weight.abs() <= values[2])).nonzero())
        assert int((after & ~before).count_nonzero()) == 3
        assert not program.weight("0.weight").detach()[~before & after].any()
        grown.append((after & ~before).flatten().tolist())
    assert len({tuple(row) for row in grown}) > 1


def test_the_same_seed_grows_the_same():
    masks = []
    for _ in range(2):
        program, trainer = attached(3)
        program(torch.ones(2, 8)).sum().backward()
        trainer.step()
        masks.append(program.mask("0.weight").clone())
    assert torch.equal(*masks)
