"""The correction by a snapshot, by hand: batches x with the loss x w² / 2, whose gradient is x w."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch

from sparsify.errors import TrainingError
from sparsify.parts.corrections import Evaluation, GradientView
from sparsify.parts.snapshots import SnapshotCorrection, readings

RULE = SnapshotCorrection(1.0, 0.5, 0.5, 1.0, "fixed", running=False, batches=None)
WEIGHT = torch.tensor([2.0])


@dataclass
class Line:
    x: float
    weight: torch.Tensor

    def loss(self, at=None):
        return self.x * (at or {"w": self.weight})["w"].square().sum() / 2

    def evaluate(self, at=None):
        gradient = {"w": self.x * (at or {"w": self.weight})["w"]}
        return Evaluation(self.loss(at), gradient, gradient)


def view(step, x, weight, *others, epoch=2):
    batch = Line(x, weight)
    sweep = [Line(other, weight) for other in others]
    return GradientView(
        step, epoch, {"w": weight}, {}, batch.evaluate().gradients, batch, lambda most: iter(sweep[:most])
    )


def test_the_gradient_moves_towards_the_mean_at_the_snapshot():
    first, state = RULE.correct(view(1, 1.0, WEIGHT, 1.0, 3.0), RULE.first({"w": WEIGHT}), 0)
    # u = (1 * 2 + 3 * 2) / 2 = 4 and g_old = 2: 2 + 0.5 * (4 - 2).
    assert first["w"].tolist() == [3.0] and state["step"] == 1 and state["count"] == 2
    second, state = RULE.correct(view(2, 3.0, torch.tensor([1.0])), state, 0)
    # No refresh before an epoch is over: g = 3, g_old = 6, u = 4: 3 + 0.5 * (4 - 6).
    assert second["w"].tolist() == [2.0] and state["snapshot"]["w"].tolist() == [2.0]
    third, state = RULE.correct(view(3, 1.0, torch.tensor([1.0]), 1.0, 3.0), state, 0)
    assert (
        third["w"].tolist() == [1.5]
        and state["snapshot"]["w"].tolist() == [1.0]
        and readings(state) == {"coefficient": 0.5}
    )


def test_a_mean_of_few_batches_counts_less():
    few = dataclasses.replace(RULE, batches=1)
    found, _ = few.correct(view(1, 1.0, WEIGHT, 3.0, 1.0), few.first({"w": WEIGHT}), 0)
    assert found["w"].tolist() == [2.0 + 0.5 * (1 / 2) * (6.0 - 2.0)]


def test_a_running_mean_asks_for_no_sweep():
    running = dataclasses.replace(RULE, running=True)
    found, state = running.correct(view(1, 1.0, WEIGHT), running.first({"w": WEIGHT}), 2)
    assert not found and state["count"] == 1
    found, state = running.correct(view(2, 3.0, WEIGHT), state, 2)
    assert found["w"].tolist() == [6.0 + 0.5 * (1 / 2) * (2.0 - 6.0)] and state["mean"]["w"].tolist() == [4.0]


def test_without_an_epoch_or_batches_there_is_no_snapshot():
    with pytest.raises(TrainingError, match="takes a snapshot once an epoch"):
        RULE.correct(view(1, 1.0, WEIGHT, epoch=None), RULE.first({"w": WEIGHT}), 0)
    with pytest.raises(TrainingError, match="the sweep is empty"):
        RULE.correct(view(1, 1.0, WEIGHT), RULE.first({"w": WEIGHT}), 0)
