"""Static masks, and no masks."""

from __future__ import annotations

from sparsify.methods import dense, static_random


def test_random_masks_that_stay():
    method = static_random(density=0.3)
    assert (method.initial, method.topology, method.density) == ("random", None, 0.3)


def test_dense_has_neither_masks_nor_rounds():
    assert (dense().initial, dense().topology, dense().density) == ("dense", None, 1.0)
