"""Drop and grow, worked by hand, then as properties over seeds and patterns."""

from __future__ import annotations

import random

import pytest
import torch

from sparsify.errors import AllocationError, PatternError
from sparsify.parts.allocation import Layer, erk, global_magnitude, uniform
from sparsify.parts.patterns import parse_pattern
from sparsify.parts.schedules import at, constant, cosine, cubic, every
from sparsify.parts.scores import magnitude
from sparsify.parts.top import top
from sparsify.parts.topology import (
    Budgets,
    DropAndGrow,
    InTurn,
    Prune,
    Rewinding,
    counts,
    drop,
    dropped_and_grown,
    grow,
    update,
)


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


@pytest.mark.parametrize(
    ("active", "total", "fraction", "target", "regrow", "expected"),
    [
        (10, 40, 0.25, None, True, (2, 2)),  # rounded down
        (10, 14, 0.75, None, False, (4, 4)),  # only four others
        (10, 40, 0.25, 10, True, (3, 3)),  # with a target, rounded up
        (10, 40, 0.25, 9, True, (3, 2)),
        (10, 40, 0.25, 7, True, (3, 0)),
        (10, 40, 0.25, 4, True, (6, 0)),  # the target asks for more than the fraction
        (10, 40, 0.0, 9, True, (1, 0)),
        (10, 40, 1.0, 4, True, (10, 4)),
        (10, 40, 0.25, 12, True, (3, 5)),  # a target may rise
        (10, 12, 1.0, 8, False, (4, 2)),  # of twelve, ten were active: two others
        (10, 12, 1.0, 12, False, (0, 2)),
    ],
)
def test_counts_by_hand(active, total, fraction, target, regrow, expected):
    assert counts(active, total, fraction, target=target, regrow_dropped=regrow) == expected


def test_budgets_by_hand():
    # Two layers of 40 and 8 positions. At half the density, 20 and 4; at a quarter by uniform shares, 10 and 2.
    layers = {"a": Layer((4, 10)), "b": Layer((2, 4))}
    way = Budgets(0.5, 0.25, uniform, uniform, cubic(1.0, 0.0, start_at=0, stop_at=4))
    assert [way.at(step, layers) for step in (0, 4, 9)] == [{"a": 20, "b": 4}, {"a": 10, "b": 2}, {"a": 10, "b": 2}]
    # Step 2 leaves an eighth of the way: 11.25 and 2.25; step 1 leaves 27/64: 14.2 and 2.8.
    assert way.at(2, layers) == {"a": 11, "b": 2} and way.at(1, layers) == {"a": 14, "b": 3}
    assert [way.density_at(step) for step in (0, 2, 4)] == [0.5, 0.25 + 0.25 / 8, 0.25]
    # In units of 4, 20 and 4, then 8 and 4, which is the least; 8 + 12 * 27 / 64 = 13.1 is 12.
    coarse = {"a": Layer((4, 10), unit=4), "b": Layer((2, 4), unit=4)}
    assert way.at(0, coarse) == {"a": 20, "b": 4} and way.at(4, coarse) == {"a": 8, "b": 4}
    assert way.at(1, coarse) == {"a": 12, "b": 4}
    fixed = {"a": Layer((4, 10), fixed_density=0.5)}
    assert Budgets(0.5, 0.5, erk, erk, way.left).at(2, fixed) == {"a": 20}
    with pytest.raises(AllocationError, match="ranking by magnitude needs the values of 'a'"):
        Budgets(0.5, 0.25, uniform, global_magnitude, way.left).at(1, layers)


def test_a_shrinking_round_of_groups_by_hand():
    # Three of four stay active in each row, then two. The three lowest of all, half of the six, are 0.1, 0.2 and 0.3, all in the first
    # row; the second row has to lose one too: 0.7. The first row grows its two highest, of which 7.0 is at the place of 0.2.
    mask = torch.tensor([[True, True, True, False], [True, True, False, True]])
    weight = torch.tensor([[0.1, 0.2, 0.3, 0.0], [0.9, 0.8, 0.0, 0.7]])
    gradient = torch.tensor([[0.0, 7.0, 0.0, 5.0], [9.0, 9.0, 9.0, 9.0]])
    rule = {"pattern": parse_pattern("fan-in"), "regrow_dropped": True, "budget": 4}
    kept, new = dropped_and_grown(mask, weight, gradient, 0.5, **rule)
    assert kept.tolist() == [[False] * 4, [True, True, False, False]]
    assert new.tolist() == [[False, True, False, True], [True, True, False, False]]
    # Without regrowing, the first row has one other place, so that it loses only two.
    kept, new = dropped_and_grown(mask, weight, gradient, 0.5, **{**rule, "regrow_dropped": False})
    assert kept.tolist() == [[False, False, True, False], [True, True, False, False]]
    assert new.tolist() == [[False, False, True, True], [True, True, False, False]]
