"""ITOP by hand: rounds to the end of the run, few and large; growth by gradient, at random, among what was never active."""

from __future__ import annotations

import pytest
import torch

import sparsify as sp
from sparsify.errors import RecipeError
from tests.methods.one_layer import OneLayer

WEIGHTS = [[0.1, -0.2, 0.3, -0.4], [0.5, -0.6, 0.7, -0.8]]
MASK = [[1, 1, 1, 1], [0, 0, 0, 0]]
GRADIENT = [[9.0, 1.0, 1.0, 1.0], [0.5, -2.0, 1.5, 0.0]]


def started(*, total=10, lr=0.0, seed=0, **options):
    layer = OneLayer(sp.methods.itop(density=0.5, **options), WEIGHTS, total_steps=total, lr=lr, seed=seed)
    layer.set_mask(MASK)
    return layer


def test_half_of_the_smallest_go_and_the_optimizer_steps_before():
    # Step 1 of 10: 0.005 + 0.2475 (1 + cos(pi / 10)) = 0.488 of four: one. With lr 0.1 the weights are first -0.8, -0.3, 0.2, -0.5: the
    # 0.2, once 0.3, is the smallest. Of the others, (0, 0) to (0, 3) but the dropped are active; |-2.0| is the largest gradient.
    layer = started(lr=0.1, update_every=1)
    layer.step(GRADIENT)
    assert layer.mask.int().tolist() == [[1, 1, 0, 1], [0, 1, 0, 0]]
    torch.testing.assert_close(layer.weight, torch.tensor([[-0.8, -0.3, 0.0, -0.5], [0.0, 0.0, 0.0, 0.0]]))


def test_a_dropped_position_may_come_back_and_keeps_its_value():
    layer = started(update_every=1)
    layer.step(GRADIENT)  # lr 0: 0.1 goes, and its gradient of 9 is the largest
    assert layer.mask.int().tolist() == MASK and layer.weight[0, 0] == pytest.approx(0.1)
    fresh = started(update_every=1, regrow_dropped=False)
    fresh.step(GRADIENT)
    assert fresh.mask.int().tolist() == [[0, 1, 1, 1], [0, 1, 0, 0]]


@pytest.mark.parametrize(("growth", "rounds"), [("gradient", 24), ("random", 66), ("unvisited", 66)])
def test_rounds_reach_to_the_end_of_the_run(growth, rounds):
    # 0.04 of 100 steps: 4, 8, ..., 96. Of 0.015 of 200: 3, 6, ..., 198.
    total = 100 if growth == "gradient" else 200
    layer = started(total=total, growth=growth)
    for _ in range(total):
        layer.step(GRADIENT)
    assert layer.trainer.counts["rounds"] == rounds


def test_growth_among_the_unvisited_covers_a_layer_as_fast_as_it_can():
    # One of four a round, and four to visit: all of them after four rounds, whatever the seed. At random some are visited twice.
    chosen = []
    for growth in ("unvisited", "random"):
        covered = []
        for seed in range(12):
            layer = started(growth=growth, update_every=1, seed=seed, drop_fraction=0.3, drop_fraction_end=0.3)
            for _ in range(4):
                layer.step()
                assert int(layer.mask.sum()) == 4
            covered.append(layer.trainer.coverage["weight"])
        chosen.append(covered)
    assert chosen[0] == [1.0] * 12
    assert min(chosen[1]) < 1.0


def test_growth_is_a_choice():
    with pytest.raises(RecipeError, match="growth should be gradient or random or unvisited, found 'momentum'"):
        sp.methods.itop(density=0.1, growth="momentum")
