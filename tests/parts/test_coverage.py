"""Coverage by hand, and against sets of positions."""

from __future__ import annotations

import pytest
import torch

from sparsify.parts.coverage import count, visit


def test_by_hand():
    # Positions 0 and 9 of ten, then 9 and 4: two bytes, highest bit first.
    visited = visit(None, torch.tensor([[True, False, False, False, False], [False, False, False, False, True]]))
    assert visited.tolist() == [0b10000000, 0b01000000] and count(visited) == 2
    again = visit(visited, torch.tensor([[False, False, False, False, True], [False, False, False, False, True]]))
    assert again.tolist() == [0b10001000, 0b01000000] and count(again) == 3
    assert visited.tolist() == [0b10000000, 0b01000000]  # what went in is as it was


@pytest.mark.parametrize("shape", [(7,), (3, 5), (4, 3, 3, 3), (16, 16)])
def test_it_is_the_union_of_the_masks(shape):
    generator = torch.Generator().manual_seed(sum(shape))
    visited, seen = None, set()
    for _ in range(6):
        mask = torch.rand(shape, generator=generator) < 0.2
        visited = visit(visited, mask)
        seen |= set(mask.reshape(-1).nonzero()[:, 0].tolist())
        assert count(visited) == len(seen)
