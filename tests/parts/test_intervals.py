"""Student's paired interval: by hand, against printed tables, and against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sparsify.parts.intervals import Difference, Spread, paired_difference, spread, student_quantile


def test_a_paired_interval_by_hand():
    # Differences 1, 2, 3: mean 2, deviation 1; t(0.975, 2) = 4.30265; reach 4.30265 / sqrt(3) = 2.48414.
    found = paired_difference([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert (found.mean, found.deviation, found.n) == (2.0, 1.0, 3)
    assert found.interval == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-5)
    assert not found.clear
    # Differences 4, 5, 6: the same reach around 5 leaves 0 out; so does its mirror image.
    assert paired_difference([4.0, 5.0, 6.0], [0.0, 0.0, 0.0]).clear
    assert paired_difference([0.0, 0.0, 0.0], [4.0, 5.0, 6.0]).clear


def test_what_a_seed_does_to_both_cancels():
    # 10, 20, 30 against themselves less 1: deviation 10 each, that of the differences 0.
    found = paired_difference([10.0, 20.0, 30.0], [9.0, 19.0, 29.0])
    assert found == Difference(1.0, 0.0, 3, (1.0, 1.0)) and spread([10.0, 20.0, 30.0]) == Spread(20.0, 10.0, 3)


def test_one_value_has_no_deviation_and_no_interval():
    assert spread([3.0]) == Spread(3.0, None, 1)
    found = paired_difference([3.0], [1.0])
    assert found == Difference(2.0, None, 1, None) and not found.clear


@pytest.mark.parametrize(
    ("p", "freedom", "printed"),
    [
        (0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 3, 3.182), (0.975, 4, 2.776), (0.975, 9, 2.262),
        (0.975, 30, 2.042), (0.95, 5, 2.015), (0.995, 2, 9.925), (0.995, 10, 3.169),
    ],
)  # fmt: skip
def test_quantiles_are_those_of_printed_tables(p, freedom, printed):
    assert student_quantile(p, freedom) == pytest.approx(printed, abs=5e-4)


def test_quantiles_and_intervals_agree_with_scipy():
    for freedom in (*range(1, 30), 100, 1001):
        for p in (0.6, 0.9, 0.975, 0.9995):
            assert student_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-9)
    rng = np.random.default_rng(0)
    for n in range(2, 12):
        values, base = rng.normal(size=n), rng.normal(size=n)
        oracle = stats.ttest_rel(values, base).confidence_interval(0.9)
        found = paired_difference(values.tolist(), base.tolist(), confidence=0.9)
        assert found.interval == pytest.approx((oracle.low, oracle.high), rel=1e-9)
        assert math.isclose(found.deviation or 0.0, float(np.std(values - base, ddof=1)), rel_tol=1e-12)


@pytest.mark.parametrize(
    "broken",
    [
        lambda: spread([]),
        lambda: paired_difference([], []),
        lambda: paired_difference([1.0], [1.0, 2.0]),
        lambda: student_quantile(0.5, 3),
        lambda: student_quantile(1.0, 3),
        lambda: student_quantile(0.9, 0),
    ],
)
def test_what_has_no_answer_is_refused(broken):
    with pytest.raises(ValueError, match=r"at least|should be|longer"):
        broken()
