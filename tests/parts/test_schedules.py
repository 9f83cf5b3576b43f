"""Schedules and triggers by hand."""

from __future__ import annotations

import pytest

from sparsify.parts.schedules import at, constant, cosine, cubic, every, geometric, linear, never


def test_half_a_cosine():
    schedule = cosine(0.4, 60, end=0.1)
    # 0.1 + 0.15 * (1 + cos(pi * step / 60)); cos is 1/2 at a third and -1/2 at two thirds.
    assert [schedule(step) for step in (0, 20, 30, 40, 60, 99)] == pytest.approx([0.4, 0.325, 0.25, 0.175, 0.1, 0.1])


def test_a_straight_line():
    schedule = linear(1.0, 0.2, stop_at=8)
    assert [schedule(step) for step in (0, 2, 4, 8, 100)] == pytest.approx([1.0, 0.8, 0.6, 0.2, 0.2])


def test_the_cubic_of_gradual_pruning():
    schedule = cubic(1.0, 0.2, start_at=10, stop_at=50)
    expected = [1.0, 1.0, 0.2 + 0.8 * 0.75**3, 0.3, 0.2125, 0.2, 0.2]
    assert [schedule(step) for step in (0, 10, 20, 30, 40, 50, 80)] == pytest.approx(expected)


def test_a_schedule_of_no_length_is_at_its_end():
    assert cosine(0.4, 0)(1) == pytest.approx(0.0)
    assert linear(1.0, 0.2, stop_at=0)(1) == pytest.approx(0.2)
    assert cubic(1.0, 0.2, start_at=5, stop_at=5)(5) == pytest.approx(0.2)


def test_triggers():
    steps = range(13)
    assert [s for s in steps if every(4)(s)] == [4, 8, 12]
    assert [s for s in steps if every(4, stop=12)(s)] == [4, 8]
    assert [s for s in steps if every(4, start=0)(s)] == [0, 4, 8, 12]
    assert [s for s in steps if every(4, start=5)(s)] == [8, 12]
    assert [s for s in steps if at(3, 7)(s)] == [3, 7]
    assert not any(never()(s) for s in steps)
    assert constant(0.5)(7) == pytest.approx(0.5)


def test_a_factor_every_so_many_steps():
    schedule = geometric(0.8, 0.5, every=10)
    assert [schedule(step) for step in (1, 9, 10, 19, 20, 35)] == [0.8, 0.8, 0.4, 0.4, 0.2, 0.1]
    assert geometric(0.3, 1.0, every=400)(10**6) == 0.3
