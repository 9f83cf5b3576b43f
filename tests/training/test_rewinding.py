"""Rewinding: weights, buffers and the optimizer's state go back, masks stay, a correction starts over, random masks go on."""

from __future__ import annotations

import torch
from torch import nn

import sparsify as sp
from sparsify.parts.topology import Rewinding
from sparsify.training.rewinding import Rewinder
from tests.cases import ConvBn, digits

X, Y = digits(32)


def masked():
    torch.manual_seed(0)
    program = sp.trace(ConvBn(), (X,)).train()
    program = sp.Pipeline.parse("insert-masks | insert-random-masks{rate=0.5}")(program)
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1, momentum=0.9)
    return program, optimizer


def stepped(program, optimizer):
    nn.functional.cross_entropy(program(X), Y).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_it_goes_back_to_the_kept_state_under_the_masks_there_are():
    program, optimizer = masked()
    rewinder = Rewinder(Rewinding(save_at=1, at=(3, 4)), program, optimizer, {})
    stepped(program, optimizer)
    rewinder.keep(0)
    assert rewinder.early == {}
    rewinder.keep(1)
    early = {name: value.clone() for name, value in program.state_dict().items()}
    stepped(program, optimizer)
    name, mask = next(iter(program.masks().items()))
    mask[0] = False
    visible = program.get_buffer(f"{name}_visible").fill_(False)
    assert not rewinder.rewind(2) and rewinder.rewind(3)
    assert torch.equal(program.weight(name), early[name] * mask) and not mask[0].any() and not visible.any()
    assert torch.equal(program.get_buffer("bn.running_mean"), early["bn.running_mean"]) and not optimizer.state
    assert rewinder.early and rewinder.rewind(4) and rewinder.early == {}, (
        "nothing is kept for longer than it is needed"
    )


def test_without_weights_only_the_optimizer_starts_over():
    program, optimizer = masked()
    rewinder = Rewinder(Rewinding(save_at=0, at=(2,), weights=False), program, optimizer, {})
    rewinder.keep(0)
    stepped(program, optimizer)
    before = {name: value.clone() for name, value in program.state_dict().items()}
    assert rewinder.early == {} and optimizer.state and rewinder.rewind(2) and not optimizer.state
    assert all(torch.equal(value, before[name]) for name, value in program.state_dict().items())


def test_a_correction_starts_over_with_each_training():
    torch.manual_seed(0)
    program = sp.trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (X,)).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    method = sp.methods.agent(sp.methods.imp(density=0.5, prune_fraction=0.5, rewind_to=0.0), snapshot="running")
    trainer = sp.attach(method, program, optimizer, total_steps=6, epoch_steps=100)
    snapshots = []
    for _ in range(6):
        trainer.loss(program(X), Y).backward()
        trainer.step(lambda: trainer.loss(program(X), Y))
        optimizer.zero_grad()
        snapshots.append(trainer.state_dict()["correction"]["step"])
    assert snapshots == [1, 1, 0, 4, 4, 4]
