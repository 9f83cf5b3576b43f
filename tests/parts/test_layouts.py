"""Layouts of grouped masks: worked by hand, and against the mask."""

from __future__ import annotations

import pytest
import torch

from sparsify.parts.compact_times import pays
from sparsify.parts.layouts import Layout, Positions, layout_of
from sparsify.parts.patterns import parse_pattern

MASK = torch.tensor([[1, 0, 1, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 1, 0, 1]]).bool()
DENSE = torch.arange(16.0).reshape(4, 4)
COMPACT = torch.tensor([[0.0, 2.0], [4.0, 6.0], [9.0, 11.0], [13.0, 15.0]])


def test_a_layout_by_hand():
    layout = layout_of(MASK, parse_pattern("grouped:2"))
    assert layout.inputs.tolist() == [[0, 2], [1, 3]] and layout.order is None
    assert (layout.rows, layout.compact_shape) == (2, (4, 2))
    assert torch.equal(layout.gather(DENSE), COMPACT)
    assert torch.equal(layout.scatter(COMPACT), DENSE * MASK)
    assert torch.equal(layout.mask(), MASK)


def test_learned_groups_are_stored_in_the_order_of_their_groups():
    mixed = MASK[[0, 2, 1, 3]]
    layout = layout_of(mixed, parse_pattern("grouped:2:learned"))
    assert layout.order.tolist() == [0, 2, 1, 3]
    assert torch.equal(layout.gather(DENSE), DENSE[[0, 2, 1, 3]][MASK].reshape(4, 2))
    assert torch.equal(layout.scatter(layout.gather(DENSE)), DENSE * mixed)


def test_a_layout_that_covers_other_values_by_hand():
    layout = Layout((4, 4), torch.tensor([[0, 2], [1, 3]]))
    assert layout.covering(DENSE * MASK) is layout
    other = torch.zeros(4, 4)
    other[1, 3] = 5.0
    cover = layout.covering(other)
    assert cover.inputs.tolist() == [[0, 2, 3], [0, 1, 3]], "the second group needs no third input, and gets input 0"
    assert torch.equal(cover.scatter(cover.gather(other)), other)
    mixed = Layout((4, 4), torch.tensor([[0, 2], [1, 3]]), torch.tensor([0, 2, 1, 3]))
    assert mixed.covering(other) is mixed, "output 1 is in the second group, which reads input 3"
    assert mixed.covering(torch.ones(4, 4)).inputs.tolist() == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize(
    ("spelling", "shape", "kept"),
    [("grouped:4x2", (16, 32), 8), ("grouped:16", (32, 64, 3, 3), 32), ("grouped:4:learned", (16, 32), 5)],
)
def test_the_layout_of_a_selected_mask_holds_its_positions(spelling, shape, kept):
    pattern, scores = parse_pattern(spelling).fitted(shape), torch.rand(shape)
    mask = pattern.select(scores, scores.numel() * kept // shape[1])
    layout = layout_of(mask, pattern)
    assert layout.compact_shape == (shape[0], kept, *shape[2:])
    assert torch.equal(layout.scatter(layout.gather(scores)), scores * mask)
    assert torch.equal(layout.mask(), mask)


@pytest.mark.parametrize(
    "mask", [torch.ones(4, 4).bool(), torch.zeros(4, 4).bool(), MASK & torch.tensor([[True], [True], [True], [False]])]
)
def test_masks_without_a_layout(mask):
    assert layout_of(mask, parse_pattern("grouped:2")) is None


def test_columns_of_integers_stay_integers():
    layout = Layout((4, 4), torch.tensor([[0, 2], [1, 3]]))
    assert layout.scatter(torch.ones(4, 2, dtype=torch.bool)).dtype is torch.bool


@pytest.mark.parametrize(
    ("shape", "share", "positions", "rows", "expected"),
    [
        ((1024, 1024), 0.1, 1, 64, True),
        ((64, 64), 0.1, 1, 32, False),  # what a compact layer adds takes longer
        ((512, 512), 0.9, 1, 64, False),
        ((512, 512), 0.25, 64, 16, False),  # copies of the inputs take longer
        ((512, 512), 0.25, 64, 64, True),
        ((128, 128, 3, 3), 0.5, 64, 64, True),
        ((128, 128, 3), 0.1, 64, 64, False),  # grouped conv1d
    ],
)
def test_what_is_predicted_to_pay(shape, share, positions, rows, expected):
    assert pays(shape, share, positions, rows) is expected


def test_positions_by_hand():
    places = Positions((2, 3), torch.tensor([1, 3, 5]))
    dense = torch.arange(6.0).view(2, 3)
    assert places.compact_shape == (3,)
    assert places.gather(dense).tolist() == [1, 3, 5]
    assert places.gather(dense.t().contiguous().t()).tolist() == [
        1,
        3,
        5,
    ]  # positions do not depend on the memory format
    assert places.scatter(torch.tensor([7.0, 8.0, 9.0])).tolist() == [[0, 7, 0], [8, 0, 9]]
