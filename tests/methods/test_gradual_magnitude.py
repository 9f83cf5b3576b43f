"""GMP by hand: ten weights of magnitudes 0.1 to 1.0 along the cubic schedule."""

from __future__ import annotations

import pytest
import torch

from sparsify.errors import RecipeError, TrainingWarning
from sparsify.methods import gmp
from tests.methods.one_layer import OneLayer

WEIGHTS = [[0.1, -0.2, 0.3, -0.4, 0.5], [-0.6, 0.7, -0.8, 0.9, -1.0]]


def test_rounds_prune_along_the_cubic_schedule():
    method = gmp(density=0.2, start_at=2, stop_at=10, update_every=4)
    layer = OneLayer(method, WEIGHTS, total_steps=20)
    active = []
    for _ in range(12):
        layer.step()
        active.append(int(layer.mask.sum()))
    # Rounds on steps 4, 8 and 10. 0.2 + 0.8 * (1 - p)^3 of ten: p = 1/4 -> 5.375, p = 3/4 -> 2.125, p = 1 -> 2.
    assert active == [10, 10, 10, 5, 5, 5, 5, 2, 2, 2, 2, 2]
    assert layer.mask.tolist() == [[False] * 5, [False, False, False, True, True]]
    assert torch.equal(layer.weight, torch.tensor(WEIGHTS) * layer.mask)
    assert layer.trainer.counts["rounds"] == 3


def test_what_is_pruned_stays_pruned():
    layer = OneLayer(gmp(density=0.2, start_at=1, stop_at=8, update_every=2), WEIGHTS, total_steps=10, lr=0.01)
    before = layer.mask.clone()
    for _ in range(10):
        layer.step([[1.0] * 5] * 2)
        assert not (layer.mask & ~before).any()
        before = layer.mask.clone()


def test_the_last_round_is_at_the_stop_whatever_the_interval():
    with pytest.warns(
        TrainingWarning, match="prunes gradually, but only one pruning is due in a run of 10 steps, on step 7"
    ):
        layer = OneLayer(gmp(density=0.3, start_at=0.1, stop_at=0.7, update_every=1000), WEIGHTS, total_steps=10)
    active = []
    for _ in range(10):
        layer.step()
        active.append(int(layer.mask.sum()))
    assert active == [10] * 6 + [3] * 4


def test_a_pattern_that_fixes_its_density_is_reached_in_one_round():
    weights = [[0.1, 0.4, 0.3, 0.2], [0.9, 0.6, 0.7, 0.8]]
    layer = OneLayer(gmp(density=0.5, start_at=1, stop_at=6, update_every=2, pattern="nm:2:4"), weights, total_steps=8)
    for _ in range(8):
        layer.step()
    assert layer.mask.tolist() == [[False, True, True, False], [True, False, False, True]]


@pytest.mark.parametrize("option", ["start_at", "stop_at"])
def test_steps_out_of_range(option):
    with pytest.raises(RecipeError, match=option):
        OneLayer(gmp(density=0.5, **{option: -1}), WEIGHTS, total_steps=10)
