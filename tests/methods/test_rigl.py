"""RigL: a round worked by hand through the trainer, in exact numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.methods import rigl
from sparsify.parts.topology import DropAndGrow


def test_rounds_and_drop_fractions_by_hand():
    made = rigl(density=0.1, update_every=100, stop_at=0.75, drop_fraction=0.4).topology
    assert made is not None
    topology = made(800)
    assert isinstance(topology, DropAndGrow)
    assert [step for step in range(1, 801) if topology.when(step)] == [100, 200, 300, 400, 500]
    assert topology.fraction(300) == pytest.approx(0.2)
    assert topology.fraction(200) == pytest.approx(0.3)
    assert topology.fraction(600) == 0.0
    assert topology.replaces_step
    assert topology.drop_by.needs_gradient is False
    assert topology.grow_by.needs_gradient is True


@pytest.mark.parametrize("replaces_step", [True, False])
def test_a_round_by_hand(replaces_step):
    """One output, six inputs. Of 0.1, 0.2, 0.3 the lowest is dropped; of the inactive inputs the largest gradient grows."""
    model = nn.Sequential(nn.Linear(6, 1, bias=False))
    program = sp.trace(model, (torch.ones(2, 6),)).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.01, momentum=0.9)
    method = rigl(density=0.5, update_every=1, stop_at=10, drop_fraction=0.9, replaces_step=replaces_step)
    trainer = sp.attach(method, program, optimizer, total_steps=10)
    weight, mask = program.weight("0.weight"), program.mask("0.weight")
    with torch.no_grad():
        mask.copy_(torch.tensor([[True, True, True, False, False, False]]))
        weight.copy_(torch.tensor([[0.1, 0.2, 0.3, 0.0, 0.0, 0.0]]))
    # The gradient of the sum is the sum of inputs: 0, 0, 0, 1, 5, 3. Fraction at step 1: 0.45 (1 + cos(pi/10)) = 0.878 -> 2 of 3.
    program(torch.tensor([[0.0, 0.0, 0.0, 1.0, 5.0, 3.0]])).sum().backward()
    trainer.step()
    assert torch.equal(mask, torch.tensor([[False, False, True, False, True, True]]))
    assert torch.equal(weight.detach(), torch.tensor([[0.0, 0.0, 0.3, 0.0, 0.0, 0.0]]))
    assert trainer.counts["rounds"] == 1
