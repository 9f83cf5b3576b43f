"""A correction at work: what reaches the optimizer, under masks, random masks and clipping."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import TrainingError
from sparsify.methods import Correction
from tests.cases import digits

X, Y = digits(32)


@functools.cache
def traced():
    """Traced once; every run takes a copy."""
    torch.manual_seed(0)
    return sp.trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (X,))


def started(correct, *, wrap=lambda method: method, lr=0.1, **options):
    program = traced().clone().train()
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(program.parameters(), lr=lr)
    correction = Correction(init=lambda weights: len(weights), correct=correct, readings=lambda state: {"state": state})
    base = wrap(sp.methods.rigl(density=0.25, update_every=3, stop_at=8))
    method = dataclasses.replace(base, correction=lambda total: correction)
    return program, optimizer, sp.attach(method, program, optimizer, total_steps=10, **options)


def loss(program):
    return lambda: nn.functional.cross_entropy(program(X), Y)


def ones(view, state):
    return {name: torch.ones_like(value) for name, value in view.gradients.items()}, state + 1


def test_inactive_and_hidden_weights_get_no_gradient():
    program, _, trainer = started(ones, wrap=lambda base: sp.methods.weight_dropout(base, rate=0.5))
    loss(program)().backward()
    trainer.correct()
    seen = program.mask("1.weight") & program.get_buffer("1.weight_visible")
    assert torch.equal(program.weight("1.weight").grad, seen.float())
    assert torch.equal(program.weight("1.bias").grad, torch.ones(10))


def test_it_is_applied_once_a_step_and_not_where_a_round_replaces_the_step():
    program, optimizer, trainer = started(ones)
    for step in range(1, 7):
        loss(program)().backward()
        trainer.correct()
        trainer.correct()
        trainer.step()
        optimizer.zero_grad()
        assert trainer.readings() == {"state": 2 + step - step // 3}


def test_the_view_tells_the_step():
    seen = []

    def look(view, state):
        seen.append((view.step, view.epoch_steps, view.masks.keys(), view.weights.keys(), view.gradients.keys()))
        return {}, state

    program, _, trainer = started(look, epoch_steps=5)
    loss(program)().backward()
    before = {name: p.grad.clone() for name, p in program.named_parameters()}
    trainer.correct()
    assert seen == [(1, 5, {"1.weight"}, {"1.weight", "1.bias"}, {"1.weight", "1.bias"})]
    assert all(torch.equal(p.grad, before[name]) for name, p in program.named_parameters())


def test_it_sees_dense_tensors_of_weights_that_are_stored_compact():
    seen = []

    def look(view, state):
        old = view.batch.evaluate({"1.weight": torch.ones(10, 64)})
        shapes = [values["1.weight"].shape for values in (view.weights, view.masks, view.gradients, old.gradients)]
        seen.append({tuple(shape) for shape in shapes})
        assert not (view.gradients["1.weight"] * ~view.masks["1.weight"]).any()
        return ones(view, state)

    def grouped(base):
        del base
        return sp.methods.rigl(density=0.25, update_every=3, stop_at=8, pattern="grouped:5")

    program, optimizer, trainer = started(look, wrap=grouped, compact="always")
    for step in range(1, 7):
        loss(program)().backward()
        trainer.correct(loss(program))
        before = program.weight("1.weight")
        trainer.step()
        optimizer.zero_grad()
        if step % 3:
            torch.testing.assert_close(program.weight("1.weight"), before - 0.1 * program.mask("1.weight"))
    assert seen == [{(10, 64)}] * 4 and trainer.forms == {"1.weight": "compact since step 1"}


def test_a_sweep_draws_random_masks_of_its_own_and_those_of_the_step_come_back():
    draws = []

    def swept(view, state):
        for batch in view.sweep(2):
            batch.loss()
            draws.append(program.get_buffer("1.weight_visible").clone())
        return {}, state

    program, _, trainer = started(
        swept,
        wrap=lambda base: sp.methods.weight_dropout(base, rate=0.5),
        sweep=lambda: iter([loss(program)] * 5),
    )
    before = program.get_buffer("1.weight_visible").clone()
    loss(program)().backward()
    trainer.correct()
    assert len(draws) == 2 and not torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], before)
    assert torch.equal(program.get_buffer("1.weight_visible"), before)
    assert trainer.counts["forwards"] == 2


def test_what_is_missing_is_said_when_it_is_asked_for():
    program, _, trainer = started(lambda view, state: ({}, view.batch.loss()))
    loss(program)().backward()
    with pytest.raises(TrainingError, match=r"trainer.step\(lambda"):
        trainer.step()
    program, _, trainer = started(lambda view, state: ({}, next(view.sweep(None))))
    loss(program)().backward()
    with pytest.raises(TrainingError, match=r"give sparsify\.attach a sweep"):
        trainer.correct()
