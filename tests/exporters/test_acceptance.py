"""What is good enough in integers: a lost class, a lost output, or lost accuracy is not; ties that fall the other way are."""

from __future__ import annotations

import numpy as np
import pytest

from sparsify.exporters.acceptance import judge

RANDOM = np.random.default_rng(0)


def scores(samples=1000, rare=3):
    """[N, 3]; the last class in ``rare`` samples only."""
    labels = np.arange(samples) % 2
    labels[:rare] = 2
    return RANDOM.normal(size=(samples, 3)) + 8.0 * np.eye(3)[labels], labels


@pytest.mark.parametrize("rare", [1, 3, 31])
@pytest.mark.parametrize("with_labels", [True, False])
def test_a_class_that_is_lost_is_refused_however_rare(rare, with_labels):
    want, labels = scores(rare=rare)
    have = want.copy()
    have[:rare, 2] -= 12.0
    judged = judge(want, have, labels if with_labels else None)
    assert judged.agreed == 1000 - rare and "class 2" in judged.refused
    assert judge(want, want + RANDOM.normal(size=want.shape) * 0.1, labels).refused == ""


def test_an_output_that_stands_still_is_refused_in_any_shape():
    for shape in ((200,), (200, 1), (200, 4), (200, 3, 5, 5), (200, 7, 11)):
        want = RANDOM.normal(size=shape)
        assert judge(want, want + RANDOM.normal(size=shape) * 0.1).refused == ""
        still = want.copy()
        still.reshape(200, -1)[:, 0] = 0.0
        assert "of its spread" in judge(want, still).refused or len(shape) < 3
        assert "of their spread" in judge(want, -want).refused
        assert "of their spread" in judge(want, 2 * want).refused  # a scale that is wrong by two
        assert "NaN" in judge(want, np.where(want > 2, np.nan, want)).refused


def test_ties_of_untrained_weights_are_no_fault():
    want = RANDOM.normal(size=(500, 1)) * np.array([[1.0, 1.0]]) + RANDOM.normal(size=(500, 2)) * 1e-3
    judged = judge(want, want + RANDOM.normal(size=want.shape) * 0.01)
    assert judged.agreed < 400 and judged.refused == "" and judged.clear <= 10


def test_accuracy_that_is_lost_by_more_than_chance_is_refused():
    labels = np.arange(2000) % 2
    want = np.stack([1.0 - labels, labels], axis=1) + RANDOM.normal(size=(2000, 2)) * 0.1
    have = want.copy()
    have[:60] = want[:60, ::-1]
    assert "class" in judge(want, have, labels).refused or "accuracy" in judge(want, have, labels).refused
    one = want.copy()
    one[:2] = want[:2, ::-1]
    assert judge(want, one, labels).refused == ""


def test_excluded_classes_stay_excluded():
    want, labels = scores(rare=0)
    want[:, 2] = -np.inf
    assert judge(want, want, labels).refused == ""
    assert "infinite" in judge(want, np.where(np.isfinite(want), want, -1e4), labels).refused
    assert "infinite" in judge(want, np.where(np.isfinite(want), want, np.inf), labels).refused
    assert "infinite" in judge(want, np.where(np.isfinite(want), want, np.nan), labels).refused
