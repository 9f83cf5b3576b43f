"""Individual calibration by hand, and beside the published form, which compares with the interval of another class."""

from __future__ import annotations

import numpy as np
import pytest

from sparsify.figures.individual import individual_calibration, individual_errors


def test_by_hand_overall_and_by_class():
    # The first is calibrated and predicts class 0: p_0 = 0.95 with a centre of 0.95. The second is 0.2 too sure, the third 0.1 too unsure.
    p, centres = np.array([[0.95, 0.05], [0.1, 0.9], [0.6, 0.4]]), np.array([0.95, 0.7, 0.7])
    assert individual_errors(p, centres) == pytest.approx([0.0, 0.2, -0.1])
    found = individual_calibration(p, centres, [0, 1, 0])
    assert found["classes"][1] == {"samples": 1, "eice": pytest.approx(0.2), "signed": pytest.approx(0.2)}
    assert found["classes"][0] == {"samples": 2, "eice": pytest.approx(0.05), "signed": pytest.approx(-0.05)}
    assert (found["samples"], found["eice"], found["signed"]) == (3, pytest.approx(0.1), pytest.approx(0.1 / 3))
    assert individual_calibration(p, centres, [0, 0, 0])["classes"][1] is None


def test_centres_are_clipped():
    assert individual_errors([[0.95, 0.05], [0.1, 0.9]], [1.4, -0.2]) == pytest.approx([-0.05, 0.9])


def test_a_calibrated_majority_is_not_charged_as_in_the_published_form():
    p = np.random.default_rng(0).uniform(0.0, 0.2, 500)  # of class 1, and so are the centres of its intervals
    table = np.stack([1 - p, p], 1)
    predicted = np.where(p > 0.5, p, 1 - p)
    assert individual_calibration(table, predicted, np.zeros(500, int))["eice"] == pytest.approx(0.0)
    published = abs(table.max(1) - p).mean()
    assert published == pytest.approx((1 - 2 * p).mean()) and published > 0.7
