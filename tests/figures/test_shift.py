"""Figures under shift, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sparsify.figures.shift import shift_figures

BEFORE = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
AFTER = np.array([[0.8, 0.2], [0.4, 0.6], [0.4, 0.6], [0.6, 0.4]])
Y = np.array([0, 1, 1, 1])


def test_four_samples():
    outputs = {
        "ood_score": np.array([1.0, 2.0, 3.0, 6.0]), "accept": np.array([1, 1, 0, 1], bool),
        "prediction_set": np.array([[1, 0], [1, 1], [0, 1], [1, 0]], bool),
    }  # fmt: skip
    found = shift_figures({"before": BEFORE, "after": AFTER}, outputs, Y)
    assert found["before"]["accuracy"] == 0.5 and found["before"]["confidence"] == pytest.approx(0.75)
    assert found["after"]["accuracy"] == 0.75 and found["after"]["confidence"] == pytest.approx(0.65)
    # bins of 1/15: 0.6 three times, of which two are right; 0.8 once, right
    assert found["after"]["ece"] == pytest.approx(0.75 * (2 / 3 - 0.6) + 0.25 * 0.2)
    assert (found["ood_score"], found["set_coverage"], found["set_size"]) == (3.0, 0.75, 1.25)
    assert (found["accepted"], found["accepted_risk"]) == (0.75, 1 / 3)  # the answers after calibration


def test_what_a_file_lacks_is_left_out():
    found = shift_figures({"before": BEFORE}, {"logits": BEFORE}, Y)
    assert found.keys() == {"before"}
    nothing = shift_figures({"before": BEFORE}, {"accept": np.zeros(4, bool)}, Y)
    assert (nothing["accepted"], nothing["accepted_risk"]) == (0.0, None)
