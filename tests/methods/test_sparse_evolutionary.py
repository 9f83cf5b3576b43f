"""SET by hand: one round on a layer of eight weights, four of them active."""

from __future__ import annotations

import torch

import sparsify as sp
from tests.methods.one_layer import OneLayer

WEIGHTS = [[0.1, -0.2, 0.3, -0.4], [0.5, -0.6, 0.7, -0.8]]
MASK = [[1, 1, 1, 1], [0, 0, 0, 0]]


def after_a_round(seed: int, **options):
    method = sp.methods.set(density=0.5, update_every=2, stop_at=6, drop_fraction=0.6, **options)
    layer = OneLayer(method, WEIGHTS, total_steps=10, seed=seed)
    layer.set_mask(MASK)
    layer.step()
    assert layer.mask.int().tolist() == MASK
    layer.step()
    return layer


def test_a_round_drops_the_smallest_and_grows_as_many_elsewhere_at_zero():
    # Half a cosine from 0.6 at step 0 to 0 at step 6: 0.3 * (1 + cos(pi / 3)) = 0.45 on step 2, of four active: one.
    grown = set()
    for seed in range(12):
        layer = after_a_round(seed)
        assert layer.mask[0].tolist() == [False, True, True, True]
        assert int(layer.mask[1].sum()) == 1
        assert layer.weight[0].tolist() == (torch.tensor(WEIGHTS[0]) * torch.tensor([0.0, 1, 1, 1])).tolist()
        assert not layer.weight[1].any()
        grown.add(int(layer.mask[1].nonzero()))
    assert len(grown) > 1  # at random


def test_a_dropped_position_may_be_drawn_again_when_asked():
    same = [after_a_round(seed, regrow_dropped=True).mask[0, 0].item() for seed in range(40)]
    assert 0 < sum(same) < 40


def test_masks_stay_from_the_stop_on():
    layer = after_a_round(0)
    masks = []
    for _ in range(8):
        layer.step()
        masks.append(layer.mask.clone())
    assert layer.trainer.counts["rounds"] == 2  # steps 2 and 4; 6 is the stop
    assert all(torch.equal(masks[1], mask) for mask in masks[1:])


def test_a_dense_start_ends_with_the_largest_magnitudes():
    layer = OneLayer(sp.methods.set(density=0.5, dense_until=0.2), [[1.0, -4.0], [3.0, 2.0]], total_steps=10)
    layer.step()
    assert layer.mask.all()
    layer.step()
    assert layer.mask.int().tolist() == [[0, 1], [1, 0]]
