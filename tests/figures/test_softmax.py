"""Softmax against its definition, at ends of the range too."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparsify.figures.softmax import log_softmax, logsumexp, softmax


def test_three_logits():
    whole = math.e + 1 + math.exp(-2)
    assert softmax([[1.0, 0.0, -2.0]])[0].tolist() == pytest.approx([math.e / whole, 1 / whole, math.exp(-2) / whole])
    assert logsumexp([1.0, 0.0, -2.0]) == pytest.approx(math.log(whole))
    assert log_softmax([1.0, 0.0, -2.0]).tolist() == pytest.approx([v - math.log(whole) for v in (1, 0, -2)])


def test_large_logits_and_excluded_classes():
    assert softmax([[1e5, 1e5, -np.inf]])[0].tolist() == [0.5, 0.5, 0.0]
    assert logsumexp([[-1e5, -np.inf]]).tolist() == [-1e5]


def test_an_infinite_logit_has_no_probability():
    assert np.isnan(softmax([[np.inf, 0.0]])).any() and np.isnan(softmax([[np.nan, 0.0]])).all()
