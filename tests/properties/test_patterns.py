"""Patterns hold after any number of random rounds; a spelling and what it means are inverse."""

from __future__ import annotations

import contextlib
import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsify.errors import PatternError
from sparsify.parts.patterns import NM, Block, Grouped, Pattern, Unstructured, parse_pattern
from sparsify.parts.patterns.fan_in import FanIn
from sparsify.parts.topology import counts, drop, dropped_and_grown, grow, update
from tests.properties.steady import steady

PATTERNS = st.one_of(
    st.just(Unstructured()),
    st.builds(Block, st.integers(1, 4), st.integers(1, 4)),
    st.integers(2, 8).flatmap(lambda m: st.builds(NM, st.integers(1, m - 1), st.just(m))),
)


@st.composite
def started(draw: st.DrawFn, patterns: st.SearchStrategy[Pattern] = PATTERNS) -> tuple[Pattern, torch.Tensor]:
    """A pattern and a mask that obeys it."""
    pattern = draw(patterns)
    rows, columns = {Block: lambda p: (p.rows, p.columns), NM: lambda p: (1, p.m)}.get(type(pattern), lambda p: (1, 1))(
        pattern
    )
    shape = (
        rows * draw(st.integers(1, 5)),
        columns * draw(st.integers(1, 5)),
        *draw(st.sampled_from([(), (3,), (2, 3)])),
    )
    pattern.check(shape, "w")
    numel, unit, fixed = torch.Size(shape).numel(), pattern.unit_size(shape), pattern.fixed_density(shape)
    budget = round(numel * fixed) if fixed else unit * draw(st.integers(0, numel // unit))
    torch.manual_seed(draw(st.integers(0, 99)))
    mask = pattern.select(torch.randn(shape), budget)
    assert int(mask.sum()) == budget and pattern.holds(mask)
    return pattern, mask


@steady
@given(PATTERNS)
def test_spelling_and_meaning_are_inverse(pattern):
    assert parse_pattern(str(pattern)) == pattern


@steady
@given(st.text(max_size=12))
def test_any_text_is_a_pattern_or_refused(text):
    with contextlib.suppress(PatternError):
        pattern = parse_pattern(text)
        assert parse_pattern(str(pattern)) == pattern


@steady
@given(started(), st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=5), st.integers(0, 9))
def test_rounds_keep_count_and_pattern_and_their_inputs(start, rounds, levels):
    pattern, mask = start
    count = int(mask.sum())
    for fraction, regrow in rounds:
        scores = [torch.rand(mask.shape) for _ in range(2)]
        if levels:
            scores = [(score * levels).round() for score in scores]  # ties
        before = mask.clone()
        new = update(mask, *scores, fraction, pattern=pattern, regrow_dropped=regrow)
        assert torch.equal(before, mask)
        assert int(new.sum()) == count and pattern.holds(new)
        if not regrow and not isinstance(pattern, NM):
            units = int(pattern.reduce(mask).sum())
            left = units - int((pattern.reduce(mask) & pattern.reduce(new)).sum())
            assert left == min(int(fraction * units), pattern.reduce(mask).numel() - units)
        mask = new


@steady
@given(st.integers(1, 500), st.floats(0, 1), st.booleans(), st.data())
def test_counts_are_feasible_and_reach_their_target(total, fraction, regrow, data):
    active, target = data.draw(st.integers(0, total)), data.draw(st.integers(0, total))
    dropped, grown = counts(active, total, fraction, target=target, regrow_dropped=regrow)
    assert 0 <= dropped <= active and grown >= 0 and active - dropped + grown == target
    assert grown <= (total - active + dropped if regrow else total - active)
    asked = max(math.ceil(fraction * active), active - target)
    assert dropped == (asked if regrow else min(asked, total - target))


@steady
@given(
    st.sampled_from([Unstructured(), Block(2, 2), FanIn(), Grouped(2), Grouped(4, 2)]),
    st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.floats(0, 1)), min_size=1, max_size=5),
    st.integers(0, 9),
)
def test_rounds_with_budgets_are_exact_in_whole_units(pattern, rounds, levels):
    torch.manual_seed(levels)
    shape = (8, 12)
    unit = pattern.unit_size(shape)
    mask = pattern.select(torch.rand(shape), 96 // unit // 2 * unit)
    for fraction, regrow, share in rounds:
        scores = [torch.rand(shape) for _ in range(2)]
        if levels:
            scores = [(score * levels).round() for score in scores]  # ties
        budget, before = unit * round(share * 96 / unit), mask.clone()
        kept, new = dropped_and_grown(mask, *scores, fraction, pattern=pattern, regrow_dropped=regrow, budget=budget)
        assert torch.equal(before, mask) and int(new.sum()) == budget and pattern.holds(new)
        assert not (kept & ~mask).any() and not (kept & ~new).any()
        assert regrow or not (new & mask & ~kept).any()
        assert torch.equal(new, update(mask, *scores, fraction, pattern=pattern, regrow_dropped=regrow, budget=budget))
        mask = new


@steady
@given(started(PATTERNS.filter(lambda p: not isinstance(p, NM))), st.data())
def test_drop_then_grow_what_was_dropped_is_nothing(start, data):
    pattern, mask = start
    active = int(pattern.reduce(mask).sum())
    n = data.draw(st.integers(0, active))
    score = torch.rand(mask.shape)
    kept = drop(mask, score, n, pattern=pattern)
    assert int(pattern.reduce(kept).sum()) == active - n and pattern.holds(kept)
    assert not (kept & ~mask).any()
    back = grow(kept, mask.float(), n, pattern=pattern)
    assert torch.equal(back, mask)


@steady
@given(started(PATTERNS.filter(lambda p: not isinstance(p, NM))))
def test_units_and_positions_are_inverse(start):
    pattern, mask = start
    shape = tuple(mask.shape)
    assert torch.equal(pattern.expand(pattern.reduce(mask), shape), mask)
    assert torch.equal(pattern.pool(mask.float()), pattern.reduce(mask).float() * pattern.unit_size(shape))


@steady
@given(started())
def test_a_broken_pattern_is_seen(start):
    pattern, mask = start
    if isinstance(pattern, NM) or pattern.unit_size(tuple(mask.shape)) > 1:
        broken = mask.clone()
        broken.view(-1)[0] = ~broken.view(-1)[0]
        assert not pattern.holds(broken)
