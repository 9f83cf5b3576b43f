"""Logits divided by a norm, by hand; and the confidence that held-out samples choose."""

from __future__ import annotations

import numpy as np
import pytest

from sparsify.errors import TrainingError
from sparsify.figures import metrics, selective
from sparsify.figures.selection_scores import NORMS, chosen, chosen_quality, normalised_logit
from sparsify.figures.softmax import softmax


def test_the_score_of_three_samples():
    # centred: (1, 0, -1), (2, 2, -4), (3, -1, -2); the highest over the sum of sizes, the length, the largest power
    logits = np.array([[2.0, 1.0, 0.0], [4.0, 4.0, -2.0], [3.0, -1.0, -2.0]])
    assert np.allclose(normalised_logit(logits, 1), [1 / 2, 2 / 8, 3 / 6])
    assert np.allclose(normalised_logit(logits, 2), [1 / 2**0.5, 2 / 24**0.5, 3 / 14**0.5])
    assert np.allclose(normalised_logit(logits, 3), [1 / 2 ** (1 / 3), 2 / 80 ** (1 / 3), 3 / 36 ** (1 / 3)])


@pytest.mark.parametrize("p", NORMS)
def test_neither_scale_nor_shift_nor_a_ruled_out_class_changes_it(p):
    logits = np.random.default_rng(0).normal(size=(20, 5))
    found = normalised_logit(logits, p)
    assert np.all((found > 0) & (found <= 1))
    for other in (1e-30 * logits, 1e30 * logits, logits + 7):
        assert np.allclose(normalised_logit(other, p), found, atol=1e-12)
    ruled_out = np.concatenate([logits, np.full((20, 1), -np.inf)], axis=1)
    assert np.allclose(normalised_logit(ruled_out, p), found)
    assert np.array_equal(normalised_logit(np.ones((2, 4)), p), [0.0, 0.0])
    with pytest.raises(TrainingError, match="logits are NaN or infinite"):
        normalised_logit([[np.nan, 1.0]], p)


def answers(seed, broken):
    """Logits of 4000 answers, more certain where right; ``broken`` scales the logits so that their norm hides it."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, 4000)
    easy = rng.random(4000)
    logits = rng.normal(size=(4000, 10)) * 0.8
    logits[np.arange(4000), labels] += 4 * easy
    if broken:
        logits *= rng.lognormal(0, 1.5, size=(4000, 1))
    return logits, labels


def test_a_norm_is_chosen_where_sizes_of_logits_say_nothing_and_the_probability_where_they_do():
    for broken in (True, False):
        (held, labels), (test, truth) = answers(0, broken), answers(1, broken)
        choice = chosen(softmax(held), held, labels)
        assert (choice.p is not None) is broken
        found = chosen_quality(choice, softmax(test), test, truth)
        confidence, correct = metrics.top_label(softmax(test), truth)
        plain = selective.aurc(selective.risk_coverage(confidence, correct))
        assert found["aurc"] < 0.9 * plain if broken else found["aurc"] == plain
        assert found["p"] == choice.p and set(found["held_out"]["norms"]) == set(map(str, NORMS))
        if choice.p is not None:
            assert choice.aurc_norms[choice.p] == min(choice.aurc_norms.values()) < choice.aurc_probability


def test_the_probability_wins_ties():
    logits, labels = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([0, 1])
    choice = chosen(softmax(logits), logits, labels)
    assert choice.p is None and choice.aurc_probability == 0
    assert np.array_equal(choice.confidence(softmax(logits), logits), softmax(logits).max(1))
