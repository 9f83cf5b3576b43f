"""One-shot pruning by hand."""

from __future__ import annotations

import torch

from sparsify.methods import one_shot
from tests.methods.one_layer import OneLayer

WEIGHTS = [[0.1, -0.2, 0.3, -0.4, 0.5], [-0.6, 0.7, -0.8, 0.9, -1.0]]


def test_the_largest_stay_once():
    layer = OneLayer(one_shot(density=0.3, prune_at=3), WEIGHTS, total_steps=6)
    active = []
    for _ in range(6):
        layer.step()
        active.append(int(layer.mask.sum()))
    assert active == [10, 10, 3, 3, 3, 3]
    assert (
        layer.weight.tolist() == (torch.tensor(WEIGHTS) * torch.tensor([[0.0] * 5, [0.0, 0.0, 1.0, 1.0, 1.0]])).tolist()
    )


def test_half_of_the_run_is_dense_by_default_and_pruned_weights_stay_at_zero():
    layer = OneLayer(one_shot(density=0.5), WEIGHTS, total_steps=8, lr=0.1)
    for step in range(1, 9):
        layer.step([[1.0] * 5] * 2)
        assert int(layer.mask.sum()) == (10 if step < 4 else 5)
        assert not layer.weight[~layer.mask].any()
