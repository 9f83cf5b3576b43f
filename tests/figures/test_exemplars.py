"""Exemplars by hand, chance between seeds, and tests over seeds beside scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sparsify.figures.exemplars import class_shifts, exemplars, modal_answers, most_fallen, welch


def test_the_most_fallen_by_hand():
    labels = np.array([0, 1, 2, 0, 1])
    dense, sparse = np.array([0, 1, 2, 1, 1]), np.array([1, 0, 2, 2, 2])
    fall = np.array([0.2, 0.7, 0.9, 0.9, 0.2])  # samples 2 and 3 are not lost
    chosen, found = most_fallen(dense, sparse, labels, fall, 2)
    assert chosen.tolist() == [1, 0] and found == 3
    assert most_fallen(dense, sparse, labels, fall, 9)[0].tolist() == [1, 0, 4]


def test_modal_answers_and_their_ties_by_hand():
    answers = np.array([[0, 2, 1, 2], [0, 1, 2, 1], [1, 1, 0, 0]])
    assert modal_answers(answers).tolist() == [0, 1, 0, 0]  # the last two samples have three answers each
    confidence = np.array([[0.9, 0.9, 0.5, 0.6], [0.9, 0.3, 0.9, 0.7], [0.9, 0.3, 0.6, 0.7]])
    assert modal_answers(answers, confidence).tolist() == [0, 1, 2, 0]


def test_exemplars_of_three_seeds_by_hand():
    labels = np.array([0, 0, 0, 0])
    dense = np.array([[0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 0]])
    sparse = np.array([[0, 1, 0, 1], [0, 1, 0, 1], [1, 0, 0, 1]])
    found = exemplars(dense, sparse, labels)
    # Modal: dense 0 0 0 1, sparse 0 1 0 1. On sample 1, all dense models are right, and one of three sparse ones.
    assert found.identified.tolist() == [False, True, False, False] and found.rate == 0.25
    assert (found.dense_accuracy, found.sparse_accuracy) == (1.0, pytest.approx(1 / 3))
    # One seed of each: dense 0 1 2 beside sparse 1 2 0: 1, 2 and 2 of 4 samples; beside dense 1 2 0: 1, 2 and 1.
    assert found.of_each == 1
    assert found.between == pytest.approx((1 + 2 + 2) / 12) and found.floor == pytest.approx((1 + 2 + 1) / 12)


def test_one_seed_has_no_floor_and_equal_models_no_exemplars():
    labels = np.array([0, 1, 1])
    found = exemplars(labels[None], labels[None], labels)
    assert (found.seeds, found.rate, found.of_each, found.between, found.floor) == (1, 0.0, 0, None, None)
    assert found.dense_accuracy is None and found.sparse_accuracy is None
    with pytest.raises(ValueError, match=r"expected \[S, N\] twice"):
        exemplars(labels[None], np.stack([labels, labels]), labels)


def test_models_that_differ_only_by_chance_are_at_the_floor():
    """The answers of all models are drawn alike, so that what is between populations is what is between dense halves."""
    draws = np.random.default_rng(0)
    labels = draws.integers(0, 5, 4000)
    models = np.where(draws.random((8, 4000)) < 0.7, labels, draws.integers(0, 5, (8, 4000)))
    found = exemplars(models[:4], models[4:], labels)
    assert found.of_each == 2 and found.between == pytest.approx(found.floor, abs=0.02)
    assert found.rate < found.floor  # populations of four are steadier than populations of two


def test_shifts_of_classes_by_hand_and_beside_scipy():
    labels = np.repeat([0, 1], 4)
    dense, sparse = np.tile(labels, (3, 1)), np.tile(labels, (3, 1))
    dense[0, 0], dense[1, 4], sparse[0, [0, 1]], sparse[1, [0, 1, 2]], sparse[2, [0, 1, 4]] = 1, 0, 1, 1, [1, 1, 0]
    # Recalls, dense: 3/4 1 1 and 1 3/4 1; sparse: 1/2 1/4 1/2 and 1 1 3/4. Accuracy: 22/24, then 16/24: 1/4 less.
    zero, one, two = class_shifts(dense, sparse, labels, 3)
    assert two is None and zero is not None and one is not None
    assert zero.shift == pytest.approx(5 / 12 - 11 / 12 + 1 / 4) and one.shift == pytest.approx(1 / 4)
    first = stats.ttest_ind(np.array([0.5, 0.75, 0.75]), [0.5, 0.25, 0.5], equal_var=False).pvalue
    second = stats.ttest_ind(np.array([0.75, 0.5, 0.75]), [1, 1, 0.75], equal_var=False).pvalue
    assert [zero.p, one.p] == pytest.approx(stats.false_discovery_control([first, second]).tolist())


def test_recalls_that_do_not_vary_have_no_test():
    labels = np.repeat([0, 1], 4)
    dense = np.tile(labels, (2, 1))
    sparse = dense.copy()
    sparse[:, 0] = 1
    zero, one = class_shifts(dense, sparse, labels, 2)
    assert zero is not None and zero.shift == pytest.approx(-0.125) and zero.p is None
    assert one is not None and one.p is None
    assert welch(np.ones(3), np.zeros(3)) is None
