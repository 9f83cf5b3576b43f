"""Schedules stay between their ends and never turn round; triggers are counted."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from sparsify.parts.schedules import at, constant, cosine, cubic, every, linear, never
from tests.properties.steady import steady

FRACTIONS = st.floats(0.0, 1.0)
STEPS = st.integers(1, 300)


def ends_and_order(values, start, end):
    low, high = min(start, end), max(start, end)
    assert all(low - 1e-12 <= value <= high + 1e-12 for value in values)
    sign = 1 if end >= start else -1
    assert all(sign * (b - a) >= -1e-12 for a, b in itertools.pairwise(values))
    assert abs(values[-1] - end) <= 1e-12


@steady
@given(FRACTIONS, FRACTIONS, STEPS)
def test_cosine_and_linear(start, end, stop):
    for schedule in (cosine(start, stop, end=end), linear(start, end, stop_at=stop)):
        values = [schedule(step) for step in range(stop + 5)]
        assert abs(values[0] - start) <= 1e-12
        ends_and_order(values, start, end)


@steady
@given(FRACTIONS, FRACTIONS, STEPS, STEPS)
def test_cubic_waits_then_ends_exactly(initial, final, start, length):
    schedule = cubic(initial, final, start_at=start, stop_at=start + length)
    values = [schedule(step) for step in range(start + length + 5)]
    assert all(abs(value - initial) <= 1e-12 for value in values[: start + 1])
    assert all(value == final for value in values[start + length :])
    ends_and_order(values, initial, final)


@steady
@given(STEPS, STEPS, st.one_of(st.none(), STEPS))
def test_every(n, first, stop):
    fired = [step for step in range(1, 400) if every(n, start=first, stop=stop)(step)]
    last = 400 if stop is None else min(stop, 400)
    assert fired == [step for step in range(n, last, n) if step >= first]


@steady
@given(FRACTIONS, st.lists(STEPS, max_size=4), STEPS)
def test_the_others(value, steps, step):
    assert constant(value)(step) == value
    assert at(*steps)(step) is (step in steps)
    assert never()(step) is False
