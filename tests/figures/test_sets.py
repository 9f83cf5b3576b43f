"""Prediction sets and accepted answers, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sparsify.figures.intervals import share_interval
from sparsify.figures.sets import MOST_SIZES, accepted_figures, hits, set_figures

SETS = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 1, 1], [1, 0, 0]], bool)
LABELS = np.array([0, 0, 1, 2, 0])


def test_five_sets():
    found = set_figures(SETS, LABELS)
    assert hits(SETS, LABELS).tolist() == [True, False, False, True, True]
    assert found["coverage"] == 0.6 and found["interval"] == list(share_interval(3, 5))
    assert (found["mean_size"], found["median_size"], found["singletons"], found["empty"]) == (1.4, 1, 0.4, 0.2)
    assert found["sizes"] == [
        {"size": 0, "samples": 1, "coverage": 0.0}, {"size": 1, "samples": 2, "coverage": 0.5},
        {"size": 2, "samples": 1, "coverage": 1.0}, {"size": 3, "samples": 1, "coverage": 1.0},
    ]  # fmt: skip
    assert found["class_coverage"] == [pytest.approx(2 / 3), 0.0, 1.0]
    assert set_figures(SETS[:2], LABELS[:2])["class_coverage"] == [0.5, None, None]


def test_sizes_are_bounded():
    found = set_figures(np.ones((3, 500), bool), np.array([0, 1, 2]))
    assert found["sizes"] == [{"size": MOST_SIZES, "samples": 3, "coverage": 1.0}] and found["mean_size"] == 500


def test_accepted_answers():
    accept, right = np.array([1, 1, 1, 0, 0], bool), np.array([1, 1, 0, 0, 1], bool)
    found = accepted_figures(accept, right)
    assert (found["samples"], found["coverage"], found["risk"], found["risk_of_all"]) == (3, 0.6, 1 / 3, 0.4)
    assert found["risk_interval"] == list(share_interval(1, 3))
    nothing = accepted_figures(~accept & ~accept & False, right)
    assert (nothing["samples"], nothing["risk"], nothing["risk_interval"]) == (0, None, None)
