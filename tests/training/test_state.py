"""`attach` and `SparseTrainer`: corrections with counted probes, averaging."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import TrainingError
from sparsify.methods import Averaging, Correction
from sparsify.methods import dense as dense_method
from tests.cases import cnn, digits

X, Y = digits(64)


def started(method, *, total=40, seed=0, lr=0.05):
    program = cnn(seed).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=lr, momentum=0.9)
    return program, optimizer, sp.attach(method, program, optimizer, total_steps=total, seed=seed)


def one_step(program, optimizer, trainer, *, closure=False):
    nn.functional.cross_entropy(program(X), Y).backward()
    trainer.step(*([lambda: nn.functional.cross_entropy(program(X), Y)] if closure else []))
    optimizer.zero_grad()


class Doubled:
    """A correction that replaces the gradient by the mean of it and of one at halved weights; its state counts its calls."""

    def __init__(self):
        self.losses = []

    def correct(self, view, state):
        other = view.batch.evaluate({name: value / 2 for name, value in view.weights.items()})
        self.losses.append(float(other.loss))
        return {name: (value + other.gradients[name]) / 2 for name, value in view.gradients.items()}, state + 1


def corrected(density=0.2):
    doubled = Doubled()
    correction = Correction(
        init=lambda weights: 0, correct=doubled.correct, readings=lambda state: {"calls": float(state)}
    )
    base = sp.methods.static_random(density=density)
    method = dataclasses.replace(base, name="doubled", correction=lambda total: correction)
    program, optimizer, trainer = started(method, lr=0.1)
    return program, optimizer, trainer, doubled


def test_a_probe_leaves_nothing_behind_and_is_counted():
    program, optimizer, trainer, correction = corrected()
    before = {name: value.clone() for name, value in program.state_dict().items()}
    reference, _, _, _ = corrected()
    loss = nn.functional.cross_entropy(program(X), Y)
    statistics = {name: value.clone() for name, value in program.named_buffers()}
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in program.named_parameters()}
    optimizer.param_groups[0]["lr"] = 0.0
    trainer.step(lambda: nn.functional.cross_entropy(program(X), Y))
    for name, value in program.named_parameters():
        assert torch.equal(value, before[name]), name
    for name, value in program.named_buffers():
        assert torch.equal(value, statistics[name]), name
    assert trainer.counts["probes"] == 1 and len(correction.losses) == 1
    with torch.no_grad():
        for p in reference.parameters():
            p.div_(2)
    other = torch.autograd.grad(nn.functional.cross_entropy(reference(X), Y), list(reference.parameters()))
    for (name, p), value in zip(program.named_parameters(), other, strict=True):
        torch.testing.assert_close(p.grad, (gradients[name] + value) / 2)


def test_a_correction_keeps_inactive_weights_at_zero_and_needs_a_closure():
    program, optimizer, trainer, _ = corrected()
    for _ in range(3):
        one_step(program, optimizer, trainer, closure=True)
    for name, mask in program.masks().items():
        assert not program.weight(name)[~mask].any()
    with pytest.raises(TrainingError, match=r"trainer.step\(lambda"):
        one_step(program, optimizer, trainer)


def averaged(base, *, start_at, every=2):
    return dataclasses.replace(base, name="averaged", averaging=lambda total: Averaging(start_at, every))


def test_averaged_weights_are_the_mean_of_the_steps_taken():
    method = averaged(sp.methods.rigl(density=0.2, update_every=3, stop_at=6), start_at=6)
    program, optimizer, trainer = started(method, total=12)
    kept = []
    for step in range(1, 13):
        one_step(program, optimizer, trainer)
        if step in {6, 8, 10, 12}:
            kept.append({name: p.detach().clone() for name, p in program.named_parameters()})
    trainer.finish([X])
    for name, p in program.named_parameters():
        torch.testing.assert_close(p.detach(), torch.stack([weights[name] for weights in kept]).mean(0))
    assert program.costs().density == trainer.density
    assert not any(bool(program.weight(name)[~mask].any()) for name, mask in program.masks().items())


def test_averaging_over_changing_masks_is_refused():
    method = averaged(sp.methods.rigl(density=0.2, update_every=3, stop_at=10), start_at=6)
    with pytest.raises(TrainingError, match="topology still changes on step 9"):
        started(method, total=12)


def test_an_averaging_and_correcting_run_resumes_to_the_same_bits():
    def made():
        program, optimizer, trainer, correction = corrected()
        return program, optimizer, trainer, correction

    whole = made()
    for _ in range(6):
        one_step(*whole[:3], closure=True)
    first = made()
    for _ in range(3):
        one_step(*first[:3], closure=True)
    states = [part.state_dict() for part in first[:3]]
    second = made()
    for part, state in zip(second[:3], states, strict=True):
        part.load_state_dict(state)
    for _ in range(3):
        one_step(*second[:3], closure=True)
    for name, value in whole[0].state_dict().items():
        assert torch.equal(value, second[0].state_dict()[name]), name
    assert whole[2].state_dict()["correction"] == second[2].state_dict()["correction"] == 6


def test_dense_has_nothing_to_finish():
    program, optimizer, trainer = started(dense_method())
    one_step(program, optimizer, trainer)
    before = program.weight("8.weight").detach().clone()
    trainer.finish([X])
    assert torch.equal(before, program.weight("8.weight"))
