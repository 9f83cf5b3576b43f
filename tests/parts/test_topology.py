"""Drop and grow, worked by hand, then as properties over seeds and patterns."""

from __future__ import annotations

import random

import pytest
import torch

from sparsify.errors import PatternError
from sparsify.parts.allocation import uniform
from sparsify.parts.patterns import parse_pattern
from sparsify.parts.schedules import at, constant, cosine, cubic, every
from sparsify.parts.scores import magnitude
from sparsify.parts.top import top
from sparsify.parts.topology import DropAndGrow, InTurn, Prune, Rewinding, drop, grow, update


def test_drop_the_lowest_active():
    mask = torch.tensor([[True, True, False, True]])
    score = torch.tensor([[0.3, 0.1, 0.0, 0.2]])
    assert drop(mask, score, 2).tolist() == [[True, False, False, False]]


def test_grow_the_highest_inactive_and_ties_go_to_the_lower_index():
    mask = torch.tensor([[True, False, False, False]])
    assert grow(mask, torch.tensor([[9.0, 1.0, 1.0, 0.5]]), 1).tolist() == [[True, True, False, False]]


def test_an_rigl_round_by_hand():
    mask = torch.tensor([[True, True, True, True], [False, False, False, False]])
    weight = torch.tensor([[0.1, 0.4, 0.3, 0.2], [0.0, 0.0, 0.0, 0.0]])
    gradient = torch.tensor([[5.0, 0.0, 0.0, 0.0], [1.0, 2.0, 0.5, 0.0]])
    # drop 2 of 4: 0.1 and 0.2; candidates by |g|: dropped 0.1 (5.0), then 2.0
    regrown = update(mask, weight, gradient, 0.5)
    assert regrown.tolist() == [[True, True, True, False], [False, True, False, False]]
    fresh = update(mask, weight, gradient, 0.5, regrow_dropped=False)
    assert fresh.tolist() == [[False, True, True, False], [True, True, False, False]]


@pytest.mark.parametrize("text", ["unstructured", "block:2x1", "block:4x2", "nm:2:4", "nm:1:4"])
@pytest.mark.parametrize("regrow", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_rounds_keep_count_and_pattern(text, regrow, seed):
    rng, pattern = random.Random(seed), parse_pattern(text)
    torch.manual_seed(seed)
    shape = (rng.choice([4, 8]), rng.choice([4, 8, 12]), *rng.choice([(), (3, 3)]))
    pattern.check(shape, "w")
    fixed = pattern.fixed_density(shape)
    unit = pattern.unit_size(shape)
    numel = torch.Size(shape).numel()
    budget = round(numel * fixed) if fixed else rng.randint(1, numel // unit) * unit
    mask = pattern.select(torch.randn(shape), budget)
    assert int(mask.sum()) == budget and pattern.holds(mask)
    new = update(
        mask, torch.rand(shape), torch.rand(shape), rng.uniform(0, 0.6), pattern=pattern, regrow_dropped=regrow
    )
    assert int(new.sum()) == budget and pattern.holds(new)
    assert torch.equal(pattern.expand(pattern.reduce(mask), shape), mask)
    assert str(parse_pattern(str(pattern))) == str(pattern)


def test_counts_out_of_range_are_refused():
    mask = torch.tensor([[True, False]])
    with pytest.raises(ValueError, match="cannot drop 2 of 1"):
        drop(mask, torch.zeros(1, 2), 2)
    with pytest.raises(ValueError, match="cannot grow 2"):
        grow(mask, torch.zeros(1, 2), 2)


@pytest.mark.parametrize(
    "text", ["", "nm:4:2", "nm:0:4", "block:0x1", "block:4", "2:4", "grouped:0", "grouped:4x0", "grouped"]
)
def test_misspelt_patterns(text):
    with pytest.raises(PatternError):
        parse_pattern(text)


def test_schedules_reach_their_ends_exactly():
    assert cubic(1.0, 0.1, start_at=0, stop_at=10)(10) == pytest.approx(0.1, abs=0)
    assert cubic(1.0, 0.1, start_at=0, stop_at=10)(0) == pytest.approx(1.0)
    assert cubic(1.0, 0.2, start_at=0, stop_at=10)(5) == pytest.approx(0.2 + 0.8 * 0.125)
    assert cosine(0.3, 100)(100) == pytest.approx(0.0)
    assert cosine(0.3, 100)(50) == pytest.approx(0.15)
    assert [s for s in range(1, 12) if every(3, stop=9)(s)] == [3, 6]


@pytest.mark.parametrize("size", [7, 4096, 200_003])
@pytest.mark.parametrize("levels", [2, 50, None], ids=lambda x: f"levels-{x}")
def test_top_equals_a_stable_sort(size, levels):
    generator = torch.Generator().manual_seed(size)
    scores = torch.randn(size, generator=generator)
    scores[::5] = 0.0
    if levels:
        scores = (scores * levels).round() / levels
    among = torch.rand(size, generator=generator) < 0.6
    for candidates in (None, among):
        indices = torch.arange(size) if candidates is None else candidates.nonzero()[:, 0]
        order = indices[scores[indices].sort(descending=True, stable=True).indices]
        for count in (0, 1, len(indices) // 3, len(indices) - 1, len(indices)):
            expected = torch.zeros(size, dtype=torch.bool)
            expected[order[:count]] = True
            assert torch.equal(top(scores, count, among=candidates), expected), count


def test_top_reads_every_column_of_a_wide_weight():
    scores = torch.zeros(1024, 3072)
    scores[:, 5] = 1.0
    chosen = top(scores.reshape(-1), 1024).reshape(1024, 3072)
    assert bool(chosen[:, 5].all()) and int(chosen.count_nonzero()) == 1024


@pytest.mark.parametrize("size", [9, 100_000])
def test_top_refuses_nan_and_too_many(size):
    scores = torch.arange(size, dtype=torch.float32)
    with pytest.raises(ValueError, match=f"cannot choose {size + 1} of {size}"):
        top(scores, size + 1)
    scores[3] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        top(scores, 4)


def test_moves_in_turn_are_due_when_any_of_them_is():
    prune = Prune(magnitude(), constant(0.5), at(4, 9), uniform)
    exchange = DropAndGrow(magnitude(), magnitude(), constant(0.5), every(6))
    both = InTurn((prune, exchange))
    assert [step for step in range(1, 13) if both.when(step)] == [4, 6, 9, 12]


def test_a_learning_rate_goes_back_with_the_training():
    # The state of step 2 is kept; trainings end on steps 6, 10 and 15 of 15: 6, 4 and 5 steps, the later ones counted from 2.
    plan = Rewinding(save_at=2, at=(6, 10))
    found = [plan.position(step, 15) for step in (0, 2, 5, 6, 9, 10, 14)]
    assert found == [(0, 6), (2, 6), (5, 6), (2, 6), (5, 6), (2, 7), (6, 7)]
