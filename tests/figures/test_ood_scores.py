"""Scores by hand: the golden logits of three classes."""

from __future__ import annotations

import math

import pytest
import torch

from sparsify.figures.ood_scores import SCORES, energy, maximum_probability, negative_entropy, scores

LOGITS = torch.tensor([[2, 1, 0.1], [0.5, 2.5, -0.5], [1, 1.2, 0.8], [-1, 0, 3]], dtype=torch.float64)


def test_maximum_probability_and_energy_of_four_samples():
    assert maximum_probability(LOGITS).tolist() == pytest.approx([0.659001, 0.843795, 0.401760, 0.936240], abs=1e-6)
    assert energy(LOGITS).tolist() == pytest.approx([2.417030, 2.669846, 2.111901, 3.065884], abs=1e-6)


def test_entropy_against_a_loop():
    for row, have in zip(LOGITS.tolist(), negative_entropy(LOGITS).tolist(), strict=True):
        whole = sum(math.exp(z) for z in row)
        assert have == pytest.approx(sum(math.exp(z) / whole * math.log(math.exp(z) / whole) for z in row), abs=1e-12)
    assert float(negative_entropy(torch.zeros(1, 4))[0]) == pytest.approx(-math.log(4))


@pytest.mark.parametrize("name", SCORES)
def test_a_sure_answer_scores_above_an_even_one(name):
    sure, even = SCORES[name](torch.tensor([[9.0, 0, 0], [1.0, 1, 1]]))
    assert sure > even


def test_heads_add_theirs_and_the_unknown_counts_against():
    found = scores(
        {"logits": LOGITS, "ood_score": torch.tensor([1.0, 2, 3, 4]), "unknown": torch.tensor([0.5, 0, 1e-40, 1])}
    )
    assert list(found) == ["maximum probability", "entropy", "energy", "ood_score", "unknown"]
    assert found["unknown"].tolist() == pytest.approx([0.693147, 105.9189, 92.1034, 0], abs=1e-3)
    assert found["ood_score"].tolist() == [1, 2, 3, 4]
    assert list(scores({"logits": LOGITS})) == list(SCORES)
