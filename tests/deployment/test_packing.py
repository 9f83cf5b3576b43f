"""Packing, worked by hand, then as properties: always exact, whatever the zeros."""

from __future__ import annotations

import pytest
import torch

from sparsify.deployment.packing import best_packing, pack
from sparsify.parts.patterns import parse_pattern


def unpacked(weight, packing):
    dense = torch.zeros_like(weight).reshape(packing.groups, packing.rows, *weight.shape[1:])
    for part, index, values in zip(dense, packing.inputs, packing.values(weight), strict=True):
        part[:, index] = values
    return dense.reshape(weight.shape)


def test_by_hand_and_a_short_group_is_filled_up():
    weight = torch.tensor([[0.0, 1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 3.0], [0.0, 0.0, 4.0, 0.0], [0.0, 0.0, 5.0, 0.0]])
    packing = pack(weight, 2)
    assert packing.inputs.tolist() == [[1, 3], [0, 2]]
    assert packing.values(weight).tolist() == [[[1.0, 2.0], [0.0, 3.0]], [[0.0, 4.0], [0.0, 5.0]]]


@pytest.mark.parametrize("text", ["grouped:64", "grouped:16x8", "unstructured", "block:4x1"])
@pytest.mark.parametrize("shape", [(128, 96), (128, 64, 3, 3)])
def test_unpacking_gives_the_weight_back(text, shape):
    generator, pattern = torch.Generator().manual_seed(0), parse_pattern(text).fitted(shape)
    scores = torch.randn(shape, generator=generator)
    weight = scores * pattern.select(scores, torch.Size(shape).numel() // 4)
    for rows in (16, 32, 128):
        packing = pack(weight, rows)
        assert torch.equal(unpacked(weight, packing), weight)
        assert len(shape) == 2 or packing.inputs.shape[1] % 16 == 0
        assert bool((packing.inputs.diff(dim=1) > 0).all())


@pytest.mark.parametrize(
    ("text", "rows", "chunk"), [("grouped:64", 64, 1), ("grouped:32x4", 32, 4), ("grouped:128x8", 128, 8)]
)
def test_the_groups_that_were_trained_are_found(text, rows, chunk):
    scores = torch.randn(128, 768, generator=torch.Generator().manual_seed(1))
    weight = scores * parse_pattern(text).select(scores.abs(), 128 * 96)
    packing, reason = best_packing(weight)
    assert packing is not None, reason
    assert (packing.rows, packing.inputs.shape[1], packing.chunk) == (rows, 96, chunk)


def test_what_would_not_be_faster_stays_dense_with_the_reason():
    scores = torch.randn(128, 96, generator=torch.Generator().manual_seed(1))
    packing, reason = best_packing(scores * parse_pattern("unstructured").select(scores.abs(), 128 * 48))
    assert packing is None and "read all of its 96 inputs" in reason
    packing, reason = best_packing(scores * parse_pattern("grouped:64").select(scores.abs(), 128 * 64))
    assert packing is None and "67%" in reason
    assert best_packing(scores * parse_pattern("grouped:64").select(scores.abs(), 128 * 64), force=True)[0] is not None
