"""The loss of a batch: attacks by hand, counted, repeated from the same start, and unbiased in a correction."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import TrainingError
from sparsify.parts.samples import Batch
from sparsify.tasks import build
from sparsify.training import Settings
from sparsify.training.trainer import loss_of
from tests.cases import ConvBn, digits
from tests.training.test_meaning import CASES, MADE, traced
from tests.training.test_meaning import X as INPUTS

X, Y = digits(48)


@functools.cache
def linear():
    """Traced once; every run takes a copy."""
    torch.manual_seed(0)
    return sp.trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (X,))


def made(model=None, **attack):
    program = (linear().clone() if model is None else sp.trace(model, (X,))).train()
    torch.manual_seed(0)
    method = sp.methods.dense()
    method = sp.methods.adversarial(method, **attack) if attack else method
    return program, sp.attach(method, program, torch.optim.SGD(program.parameters(), lr=0.1), total_steps=9)


def gradient(program):
    found = program.weight("1.bias").grad
    assert found is not None
    return found


def batch(trainer, rows=slice(None), x=X):
    return loss_of(trainer, Batch(x[rows], Y[rows]), Settings(epochs=1))


def test_without_an_attack_it_is_cross_entropy():
    program, trainer = made()
    found = batch(trainer)
    torch.testing.assert_close(found(), nn.functional.cross_entropy(program(X), Y))
    assert trainer.counts["forwards"] == 0 and torch.equal(found.output, program(X).detach())


def test_an_attack_raises_the_loss_is_counted_and_repeats():
    program, trainer = made(radius=0.1, step_size=0.05, iterations=3)
    plain = float(nn.functional.cross_entropy(program(X), Y).detach())
    found = batch(trainer)
    first = float(found().detach())
    assert first > plain + 0.05 and float(found().detach()) == first
    assert [trainer.counts[key] for key in ("forwards", "backwards", "probes")] == [6, 6, 0]
    moved = found._inputs() - X
    assert 0.099 < float(moved.abs().max()) <= 0.1 + 1e-6
    with torch.no_grad():
        assert float(found()) == first


def test_an_attack_leaves_running_statistics_and_gradients_alone():
    program, trainer = made(ConvBn(), radius=0.1, step_size=0.05, iterations=2)
    found, before = batch(trainer), {name: value.clone() for name, value in program.named_buffers()}
    found._inputs()
    assert all(torch.equal(value, before[name]) for name, value in program.named_buffers())
    assert all(p.grad is None for p in program.parameters())


def test_inputs_that_are_not_numbers_are_refused():
    with pytest.raises(TrainingError, match="attacks inputs and needs numbers in one tensor"):
        batch(made(radius=0.1, step_size=0.1, iterations=1)[1], x=X.long())


def _plain(program, x, y):
    return nn.functional.cross_entropy(program(x), y)


@pytest.mark.parametrize("crafted", ["where the loss is evaluated", "at the current weights"])
def test_a_correction_is_unbiased_where_attacks_follow_the_weights(crafted):
    """The mean over batches of (u - g_old) is 0 where g_old's inputs are made as u's were: at the snapshot."""
    attack = {"radius": 0.3, "step_size": 0.1, "iterations": 2}
    program, _ = made()
    method = sp.methods.adversarial(sp.methods.dense(), **attack)
    method = sp.methods.agent(method, gamma=1.0, initial=1.0, coefficient="fixed")
    optimizer = torch.optim.SGD(program.parameters(), lr=1.0)
    rows = [slice(start, start + 16) for start in (0, 16, 32)]
    trainer = sp.attach(method, program, optimizer, total_steps=9, epoch_steps=9, sweep=lambda: iter(losses))
    losses = [batch(trainer, some) for some in rows]
    for loss in losses:
        loss().backward()
        trainer.step(loss)
        optimizer.zero_grad()
    state, bias = trainer.state_dict()["correction"], torch.zeros(10)
    for loss, some in zip(losses, rows, strict=True):
        fixed = loss._inputs()
        closure = loss
        if crafted == "at the current weights":
            closure = functools.partial(_plain, program, fixed, Y[some])
        loss().backward()
        raw = gradient(program).clone()
        trainer.load_state_dict({**trainer.state_dict(), "correction": state})
        trainer.correct(closure)
        bias += gradient(program) - raw
        optimizer.zero_grad()
    assert (float(bias.abs().max()) < 1e-6) == (crafted == "where the loss is evaluated")


@pytest.mark.parametrize("name", CASES)
def test_an_attack_raises_the_loss_of_any_task(name):
    program, target = traced(name).train(), CASES[name][1]
    task = MADE if name == "custom" else build(name)
    method = sp.methods.adversarial(sp.methods.dense(), radius=0.2, step_size=0.1, iterations=3)
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    trainer = sp.attach(method, program, optimizer, total_steps=9, task=task)
    plain = float(trainer.loss(program(INPUTS), target).detach())
    attacked = loss_of(trainer, Batch(INPUTS, target), Settings(epochs=1))
    assert float(attacked().detach()) > plain + 0.02
    assert 0.19 < float((attacked._inputs() - INPUTS).abs().max()) <= 0.2 + 1e-6
