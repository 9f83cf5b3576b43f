"""Averaging by hand, and when it is refused."""

from __future__ import annotations

import pytest
import torch

import sparsify as sp
from sparsify.errors import RecipeError, TrainingError
from tests.methods.one_layer import OneLayer

WEIGHTS = [[1.0, -2.0], [3.0, -4.0]]


def test_the_run_ends_with_the_mean_of_its_last_part():
    base = sp.methods.static_random(density=1.0)
    layer = OneLayer(sp.methods.averaged(base, start_at=0.5, average_every=2), WEIGHTS, total_steps=8, lr=1.0)
    for _ in range(8):
        layer.step([[0.0, 1.0], [0.0, 0.0]])
    # After steps 4, 6 and 8 the second weight is -6, -8 and -10.
    assert layer.weight.tolist() == [[1.0, -10.0], [3.0, -4.0]]
    layer.trainer.finish()
    assert layer.weight.tolist() == [[1.0, -8.0], [3.0, -4.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_at": 0.7}, "averages weights from step 7, but the topology still changes on step 8"),
        ({"start_at": 12}, "averages weights from step 12, but the run has 10"),
        ({"start_at": 1.5}, "start_at should be a number of steps"),
        ({"average_every": 0}, "average_every should be a number of steps"),
    ],
)
def test_when_it_is_refused(options, message):
    base = sp.methods.rigl(density=0.5, update_every=2, stop_at=9)
    with pytest.raises((TrainingError, RecipeError), match=message):
        OneLayer(sp.methods.averaged(base, **options), WEIGHTS, total_steps=10)


def test_defaults_start_after_the_last_round_of_every_method():
    for total in (10, 100, 1000, 88_000):
        plan = sp.methods.averaged(sp.methods.rigl(density=0.5)).averaging(total)
        assert plan.start_at == round(0.8 * total) and plan.every == max(1, round(0.004 * total))
    base = sp.methods.averaged(sp.methods.rigl(density=0.5))
    assert base.name == "averaged(rigl)" and torch.allclose(torch.tensor(base.density), torch.tensor(0.5))
    with pytest.raises(RecipeError, match="averages weights already"):
        sp.methods.averaged(base)
