"""Schedules and triggers by hand."""

from __future__ import annotations

import math

import pytest

from sparsify.parts.schedules import at, constant, cosine, cubic, every, linear, never


def test_cosine_at_a_third_a_half_and_the_end():
    value = cosine(0.3, 600)
    assert value(0) == 0.3
    assert value(200) == pytest.approx(0.15 * (1 + 0.5))
    assert value(300) == pytest.approx(0.15)
    assert value(600) == value(10_000) == 0.0
    assert cosine(1.0, 10, end=0.5)(5) == pytest.approx(0.75)
    assert cosine(1.0, 4)(1) == pytest.approx((1 + math.sqrt(0.5)) / 2)


def test_linear_rises_and_falls():
    assert [linear(0.0, 1.0, stop_at=4)(step) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert linear(1.0, 0.5, stop_at=10)(5) == 0.75


def test_cubic_is_the_published_formula():
    """Sparsity s_f (1 - (1 - t)^3) from dense: at half of the way 7/8 of the final sparsity is reached."""
    density = cubic(1.0, 0.2, start_at=100, stop_at=300)
    assert [density(step) for step in (0, 100)] == [1.0, 1.0]
    assert density(200) == pytest.approx(1 - 0.8 * 7 / 8)
    assert density(150) == pytest.approx(1 - 0.8 * (1 - 0.75**3))
    assert density(300) == density(999) == 0.2


def test_a_schedule_without_length_is_at_its_end():
    assert cosine(0.3, 0)(1) == pytest.approx(0.0)
    assert cubic(1.0, 0.1, start_at=5, stop_at=5)(5) == 0.1
    assert constant(0.4)(0) == constant(0.4)(10**9) == 0.4


def test_triggers():
    assert [step for step in range(12) if every(3)(step)] == [3, 6, 9]
    assert [step for step in range(12) if every(3, stop=9)(step)] == [3, 6]
    assert [step for step in range(12) if every(3, start=5)(step)] == [6, 9]
    assert [step for step in range(12) if at(2, 7)(step)] == [2, 7]
    assert not any(never()(step) for step in range(12))
