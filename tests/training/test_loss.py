"""The loss of a run: observed once a step, the same for every probe, refused where it was not used."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import TrainingError
from sparsify.training.loss import RunningLoss
from tests.cases import digits

LOGITS, LABELS = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0])


class Scaled:
    """Cross-entropy times the number of batches observed."""

    def init(self):
        return 0

    def observe(self, logits, labels, state, step):
        return state + 1

    def loss(self, logits, labels, state):
        return state * nn.functional.cross_entropy(logits, labels)

    def readings(self, state):
        return {"scale": float(state)}


def with_objective(base):
    return dataclasses.replace(base, objective=lambda total: Scaled())


def test_without_an_objective_it_is_cross_entropy():
    loss = RunningLoss(sp.methods.dense(), None)
    assert torch.equal(loss(LOGITS, LABELS, 1), nn.functional.cross_entropy(LOGITS, LABELS))
    smoothed = nn.functional.cross_entropy(LOGITS, LABELS, label_smoothing=0.1)
    assert torch.equal(loss(LOGITS, LABELS, 1, label_smoothing=0.1), smoothed)
    loss.before_step(1)
    assert loss.readings() == {}


def test_a_step_is_observed_once():
    loss, plain = RunningLoss(sp.methods.dense(), Scaled()), nn.functional.cross_entropy(LOGITS, LABELS)
    with pytest.raises(TrainingError, match="which this step did not use"):
        loss.before_step(1)
    assert torch.equal(loss(LOGITS, LABELS, 1), plain)
    assert torch.equal(loss(LOGITS, LABELS, 1), plain), "a probe"
    loss.before_step(1)
    loss.after_step(1, True)
    assert torch.equal(loss(LOGITS, LABELS, 2), 2 * plain) and loss.readings() == {"scale": 2.0}
    other = RunningLoss(sp.methods.dense(), Scaled())
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(LOGITS, LABELS, 2), 2 * plain), "saved between loss and step"


def test_smoothing_beside_an_objective_is_refused():
    loss = RunningLoss(sp.methods.dense(), Scaled())
    with pytest.raises(TrainingError, match=r"label-smoothing 0\.1 would not enter"):
        loss(LOGITS, LABELS, 1, label_smoothing=0.1)


def test_in_the_user_s_own_loop():
    x, y = digits(32)
    program = sp.trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (x,)).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    trainer = sp.attach(with_objective(sp.methods.dense()), program, optimizer, total_steps=3)
    for step in (1, 2):
        loss = trainer.loss(program(x), y)
        assert torch.equal(loss, step * nn.functional.cross_entropy(program(x), y))
        loss.backward()
        trainer.step()
        optimizer.zero_grad()
    assert trainer.readings() == {"scale": 2.0}
    nn.functional.cross_entropy(program(x), y).backward()
    with pytest.raises(TrainingError, match=r"trainer\.loss\(program\(x\), y\)\.backward"):
        trainer.step()
    assert trainer.steps == 2
    with pytest.raises(TrainingError, match=r"Call program\.train\(\) first"):
        trainer.loss(program.eval()(x), y)
