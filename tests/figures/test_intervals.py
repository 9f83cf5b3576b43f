"""Student's paired interval: by hand, against printed tables, and against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sparsify.figures.intervals import (
    Difference,
    Spread,
    paired_difference,
    paired_shares,
    share_interval,
    spread,
    student_quantile,
)


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


@pytest.mark.parametrize("freedom", [1, 2, 3, 8, 29, 100, 1001])
def test_the_density_below_a_quantile_is_the_probability(freedom):
    """Simpson's rule over Student's density from 0, where half of it lies below."""
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    for p in (0.6, 0.9, 0.975, 0.9995):
        x = np.linspace(0.0, math.asinh(student_quantile(p, freedom)), 4001)  # t = sinh(x), since tails are long
        density = scale * (1 + np.sinh(x) ** 2 / freedom) ** (-(freedom + 1) / 2) * np.cosh(x)
        weights = np.r_[1.0, np.tile([4.0, 2.0], 2000)[:-1], 1.0]
        assert 0.5 + float(weights @ density) * (x[1] - x[0]) / 3 == pytest.approx(p, abs=1e-10)


def test_intervals_agree_with_scipy():
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


@pytest.mark.parametrize(("hits", "samples"), [(0, 1), (0, 30), (7, 7), (10, 20), (341, 360)])
def test_the_interval_of_a_share_is_wilsons(hits, samples):
    oracle = stats.binomtest(hits, samples).proportion_ci(method="wilson")
    assert share_interval(hits, samples) == pytest.approx((oracle.low, oracle.high), abs=1e-12)


def test_paired_shares_by_hand():
    # 3 lost and 9 gained of 100: 4/102 and 10/102; centre 0.0588235, reach 1.959964 * sqrt((0.1372549 - 0.0034602) / 102) = 0.0709850.
    difference, interval = paired_shares(3, 9, 100)
    assert difference == pytest.approx(0.06) and interval == pytest.approx((-0.0121615, 0.1298085), abs=1e-6)
    assert paired_shares(9, 3, 100)[1] == pytest.approx((-0.1298085, 0.0121615), abs=1e-6)
    low, high = paired_shares(0, 0, 50)[1]
    assert low < 0 < high  # no change on 50 samples is no proof of none
    assert paired_shares(1, 0, 1)[1][0] >= -1
    with pytest.raises(ValueError, match="expected lost"):
        paired_shares(3, 3, 5)


def test_paired_shares_hold_their_confidence():
    """Simulated: the interval holds the true difference in about 95 of 100 draws, for few samples and many."""
    rng = np.random.default_rng(0)
    for samples, lost, gained in ((40, 0.1, 0.1), (360, 0.03, 0.01), (1000, 0.02, 0.05)):
        draws = rng.multinomial(samples, [lost, gained, 1 - lost - gained], size=2000)
        held = [
            low <= gained - lost <= high
            for a, b, _ in draws
            for low, high in [paired_shares(int(a), int(b), samples)[1]]
        ]
        assert 0.93 <= np.mean(held) <= 0.99
