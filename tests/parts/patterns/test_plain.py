"""Patterns by hand: what they select, and what they refuse."""

from __future__ import annotations

import pytest
import torch

from sparsify.errors import PatternError
from sparsify.parts.patterns import NM, Block, Unstructured, parse_pattern

SCORES = torch.tensor([[4.0, 1.0, 3.0, 2.0], [1.0, 1.0, 1.0, 1.0]])


def test_unstructured_keeps_the_highest_and_then_the_lower_index():
    want = torch.tensor([[True, False, True, True], [False, False, False, False]])
    assert torch.equal(Unstructured().select(SCORES, 3), want)
    want = torch.tensor([[True, True, True, True], [True, False, False, False]])
    assert torch.equal(Unstructured().select(SCORES, 5), want)


def test_two_of_four_keeps_two_in_every_four_inputs():
    want = torch.tensor([[True, False, True, False], [True, True, False, False]])
    assert torch.equal(NM(2, 4).select(SCORES, 4), want)
    assert NM(2, 4).holds(want)
    assert not NM(2, 4).holds(want[:, [0, 2, 1, 3]] | want)
    with pytest.raises(ValueError, match="fixes the density"):
        NM(2, 4).select(SCORES, 3)


def test_two_of_four_counts_inputs_at_one_kernel_position():
    scores = torch.arange(8.0).reshape(1, 4, 2)  # [O, I, K]
    want = torch.tensor([[[False, False], [False, False], [True, True], [True, True]]])
    assert torch.equal(NM(2, 4).select(scores, 4), want)


def test_blocks_are_ranked_by_their_sums():
    mask = Block(2, 2).select(SCORES, 4)
    assert torch.equal(
        mask, torch.tensor([[True, True, False, False], [True, True, False, False]])
    )  # 7 to 7: the first
    assert torch.equal(Block(1, 2).select(SCORES, 4)[0], torch.tensor([True, True, True, True]))
    with pytest.raises(ValueError, match="multiple of 4"):
        Block(2, 2).select(SCORES, 2)


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ("nm:2:4", (8, 6), r"divisible by 4.*'w'.*\[8, 6\].*keep-dense"),
        ("nm:2:4", (8,), "divisible by 4"),
        ("block:4x2", (6, 4), r"outputs divisible by 4.*\[6, 4\]"),
        ("block:4x3", (8, 4, 3, 3), "inputs divisible by 3"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(text, shape, message):
    with pytest.raises(PatternError, match=message):
        parse_pattern(text).check(shape, "w")


@pytest.mark.parametrize("text", ["unstructured", "nm:2:4", "block:2x2"])
@pytest.mark.parametrize("shape", [(4, 8), (4, 8, 3), (4, 8, 3, 3)])
def test_units_and_positions_are_inverse(text, shape):
    kind = parse_pattern(text)
    kind.check(shape, "w")
    mask = kind.select(torch.rand(shape), torch.Size(shape).numel() // 2)
    assert torch.equal(kind.expand(kind.reduce(mask), shape), mask)
    assert kind.holds(mask)
