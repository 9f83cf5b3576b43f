"""What a sparse model loses: by hand, against other ways to compute it, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sparsify.figures.damage import benjamini_hochberg, class_damages, damage, excess_gap, mcnemar
from sparsify.figures.intervals import paired_shares, share_interval

LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
DENSE = np.array([0, 0, 0, 1, 1, 1, 1, 1, 0, 0])
SPARSE = np.array([0, 1, 1, 1, 1, 1, 1, 1, 1, 3])


def test_two_classes_by_hand():
    # Class 0: 3 of 4 right, then 1 of 4: 2 lost. Class 1: 4 of 6, then 5 of 6: 1 gained. All: 7 of 10, then 6 of 10.
    # Answers differ on samples 1, 2, 8 and 9. Excess gaps: 0.5 - 0.1 = 0.4 and -1/6 - 0.1.
    found = damage(DENSE, SPARSE, LABELS, 4)
    assert found.samples == 10 and found.churn == 0.4 and found.negative_flips == 0.2
    assert found.churn_interval == share_interval(4, 10) and found.negative_flips_interval == share_interval(2, 10)
    zero, one, *empty = found.classes
    assert zero is not None and one is not None and empty == [None, None]
    assert (zero.samples, zero.dense, zero.sparse, zero.change) == (4, 0.75, 0.25, -0.5)
    assert (one.samples, one.dense, one.sparse, one.change) == (6, 4 / 6, 5 / 6, pytest.approx(1 / 6))
    assert zero.excess_gap == pytest.approx(0.4) and one.excess_gap == pytest.approx(-1 / 6 - 0.1)
    assert (zero.negative_flips, one.negative_flips) == (0.5, 0.0)
    assert zero.negative_flips_interval == share_interval(2, 4)
    assert (found.worst_class, found.max_excess_gap) == (0, zero.excess_gap)
    assert found.max_excess_interval == zero.excess_interval
    # Two of two changes one way have p = 1/2, one of one p = 1; times 2 / 1 and 2 / 2 that is 1 and 1.
    assert (zero.p, one.p) == (1.0, 1.0) and {zero.verdict, one.verdict} == {"no clear difference"}
    # Nothing is significant, so both intervals hold together: 0.05 / 2 each.
    assert zero.interval == paired_shares(2, 0, 4, confidence=0.975)[1]


def test_a_class_is_called_worse_only_if_the_corrected_test_says_so():
    # Ten of ten changes one way: p = 2 / 1024. With 20 classes and nothing else significant, 20 p = 0.039; with 40 classes, 0.078.
    for classes, verdict in ((20, "worse"), (40, "no clear difference")):
        labels = np.repeat(np.arange(classes), 30)
        sparse = labels.copy()
        sparse[:10] = 1
        row, *others = class_damages(labels, sparse, labels, classes)
        assert row is not None and row.p == pytest.approx(classes * 2 / 1024) and row.verdict == verdict
        assert row.interval == paired_shares(10, 0, 30, confidence=1 - 0.05 / classes)[1]
        assert {other.verdict for other in others if other} == {"no clear difference"}
    labels = np.repeat([0, 1], 30)
    dense = labels.copy()
    dense[:12] = 1
    row, _ = class_damages(dense, labels, labels, 2)
    assert row is not None and row.verdict == "better" and row.interval[0] > 0


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (3, 0), (1, 7), (7, 1), (5, 5), (40, 60)])
def test_mcnemar_is_the_binomial_test(lost, gained):
    expected = stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert mcnemar(lost, gained) == pytest.approx(expected)


def test_benjamini_hochberg_by_hand_and_beside_scipy():
    # From the largest: 0.6 · 4/4; 0.03 · 4/3 = 0.04; 0.025 · 4/2 = 0.05, but no more than 0.04; 0.005 · 4 = 0.02.
    assert benjamini_hochberg([0.03, 0.005, 0.6, 0.025]) == pytest.approx([0.04, 0.02, 0.6, 0.04])
    values = np.random.default_rng(0).random(50) ** 3
    assert benjamini_hochberg(values.tolist()) == pytest.approx(stats.false_discovery_control(values))
    assert benjamini_hochberg([]) == []


def test_an_excess_gap_by_hand():
    # A quarter of the samples loses 0.3 and the rest 0.1: all lose 0.15, and the gap is 0.15 = 3/4 (0.3 - 0.1).
    gap, (low, high) = excess_gap((40, 10, 100), (40, 10, 300))
    assert gap == pytest.approx(0.15) and low < gap < high
    own, rest = (-np.array(paired_shares(*counts)[1])[::-1] for counts in ((40, 10, 100), (40, 10, 300)))
    reach = math.hypot(0.3 - own[0], rest[1] - 0.1), math.hypot(own[1] - 0.3, 0.1 - rest[0])
    assert (low, high) == pytest.approx((0.75 * (0.2 - reach[0]), 0.75 * (0.2 + reach[1])))
    assert excess_gap((3, 1, 10), (0, 0, 0)) == (0.0, (0.0, 0.0))


def test_the_intervals_of_excess_gaps_hold_together():
    """In 95 % of draws, all classes have their true gap in their interval; exactly as many as that would be 0.95."""
    draws, held = np.random.default_rng(1), 0
    lost, gained = np.array([0.02, 0.02, 0.15]), np.array([0.02, 0.01, 0.03])
    labels = np.repeat([0, 1, 2], [400, 300, 60])
    weights = np.bincount(labels) / len(labels)
    true = (lost - gained) - weights @ (lost - gained)
    for _ in range(400):
        chance = draws.random(len(labels))
        dense, sparse = labels.copy(), labels.copy()
        sparse[chance < lost[labels]] = 9
        dense[chance > 1 - gained[labels]] = 9
        rows = class_damages(dense, sparse, labels, 10)[:3]
        held += all(
            row.excess_interval[0] <= gap <= row.excess_interval[1] for row, gap in zip(rows, true, strict=True)
        )
    assert held / 400 > 0.93


def test_answers_of_other_samples_are_refused():
    with pytest.raises(ValueError, match="expected answers of the same samples"):
        damage(DENSE, SPARSE[:-1], LABELS, 2)
    with pytest.raises(ValueError, match="expected answers of the same samples"):
        damage(DENSE[:0], SPARSE[:0], LABELS[:0], 2)
