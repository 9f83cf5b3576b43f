"""Rows of files about answers, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sparsify.errors import TrainingError
from sparsify.figures.answers import answers, damage_row
from sparsify.figures.damage import damage

LABELS = np.array([0, 1, 0, 1])
DENSE = np.array([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4], [0.6, 0.4]])
SPARSE = np.array([[0.4, 0.5, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8], [0.3, 0.6, 0.1]])  # with an unknown class


def test_a_row_by_hand():
    found = damage_row((np.log(DENSE), DENSE), (np.log(SPARSE), SPARSE), LABELS)
    # Samples 0 and 2 are lost: the probability of their label falls by 0.5 each; the lower number comes first.
    assert found["lost"] == 2
    assert found["exemplars"] == [
        {"sample": 0, "label": 0, "dense": 0, "sparse": 1, "fall": pytest.approx(0.5)},
        {"sample": 2, "label": 0, "dense": 0, "sparse": 2, "fall": pytest.approx(0.5)},
    ]
    expected = damage(np.array([0, 1, 0, 0]), np.array([1, 1, 2, 1]), LABELS, 3)
    assert found["churn"] == expected.churn == 0.75 and len(found["classes"]) == 3
    assert damage_row((DENSE, DENSE), (SPARSE, SPARSE), LABELS, most=1)["exemplars"] == found["exemplars"][:1]


def test_answers_by_hand():
    found = answers({"dense": (np.log(DENSE), DENSE), "model": (SPARSE, SPARSE / 3)}, LABELS)
    assert found["labels"] == [0, 1, 0, 1]
    assert found["answers"] == {"dense": [0, 1, 0, 0], "model": [1, 1, 2, 1]}
    assert found["confidence"] == {"dense": [0.9, 0.7, 0.6, 0.6], "model": [0.1667, 0.2333, 0.2667, 0.2]}


def test_scores_of_a_diverged_model_are_refused():
    with pytest.raises(TrainingError, match="are NaN or infinite"):
        answers({"model": (DENSE * np.nan, DENSE)}, LABELS)
