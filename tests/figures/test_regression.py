"""Errors of predicted numbers and coverage of intervals: by hand and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import r2_score

from sparsify.figures.regression import coverage, errors, width


def test_errors_of_three_predictions():
    found = errors([1.0, 2.0, 4.0], [1.0, 2.0, 3.0])
    assert found == pytest.approx({"r2": 0.5, "rmse": (1 / 3) ** 0.5, "mae": 1 / 3})


def test_r2_of_several_outputs_against_scikit_learn():
    rng = np.random.default_rng(0)
    target = rng.normal(size=(50, 3)) * [1, 10, 100] + 7
    prediction = target + rng.normal(size=(50, 3))
    assert errors(prediction, target)["r2"] == pytest.approx(
        r2_score(target, prediction, multioutput="variance_weighted")
    )


@pytest.mark.parametrize(("prediction", "wanted"), [([2.0, 2.0], 1.0), ([2.0, 2.5], 0.0)])
def test_equal_targets(prediction, wanted):
    assert errors(prediction, [2.0, 2.0])["r2"] == wanted


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"found \[2, 1\] and \[2\]"):
        errors([[1.0], [2.0]], [1.0, 2.0])


def test_coverage_and_width_of_three_intervals():
    assert coverage([0.0, 1.0, 3.0], [0.0, 2.0, 1.0], [1.0, 3.0, 3.0]) == 2 / 3  # bounds are inside
    assert width([0.0, 2.0], [1.0, 5.0]) == 2.0
    assert width([], []) == 0
