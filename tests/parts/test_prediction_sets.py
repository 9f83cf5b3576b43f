"""Conformal scores and thresholds, against a case worked by hand and against their guarantee."""

from __future__ import annotations

import math

import pytest
import torch

from sparsify.parts.prediction_sets import PENALTIES, adaptive_scores, charges, few, lac_scores, threshold, tuned

P = torch.tensor([
    [0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.4, 0.35, 0.25], [0.05, 0.9, 0.05], [0.33, 0.34, 0.33], [0.8, 0.15, 0.05],
    [0.25, 0.25, 0.5], [0.1, 0.6, 0.3],
], dtype=torch.float64)  # fmt: skip
Y = torch.tensor([0, 2, 2, 1, 1, 0, 0, 2, 1])


def right(scores):
    return scores.gather(1, Y[:, None])[:, 0]


def test_the_scores_and_thresholds_of_nine_samples():
    scores = right(lac_scores(P))
    assert scores.sort().values.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.5, 0.65, 0.67, 0.7])
    assert 0.67 <= threshold(scores, 0.8) < 0.7  # the 8th of 9
    scores = right(adaptive_scores(P, charges(3, 0.1, 1)))
    assert scores.tolist() == pytest.approx([0.6, 0.9, 0.7, 0.85, 0.9, 0.77, 0.8, 0.5, 0.6])
    assert threshold(scores, 0.8) == pytest.approx(0.9, abs=1e-5)  # the 8th is the largest: just above it


def test_equally_probable_classes_have_the_same_score():
    table = torch.tensor([[0.25, 0.25, 0.5], [0.0, 0.0, 1.0]])
    assert adaptive_scores(table).tolist() == [[0.75, 0.75, 0.5], [1.0, 1.0, 1.0]]
    assert adaptive_scores(table, charges(3, 0.1, 1).float())[1].tolist() == pytest.approx([1.1, 1.1, 1.0])


def test_too_few_samples_give_no_threshold():
    assert threshold(torch.linspace(0, 1, 8), 0.9) == math.inf and few(8, 0.9) == (
        "not possible from 8 held-out samples, of which 9 are needed: every set holds all classes"
    )
    assert threshold(torch.linspace(0, 1, 9), 0.9) < math.inf and few(9, 0.9) is None
    with pytest.raises(ValueError, match="at least one sample"):
        threshold(torch.tensor([]), 0.9)


def test_no_held_out_score_lies_at_the_threshold():
    scores = torch.tensor([0.1, 0.2, 0.2, 0.2, 0.6])
    limit = threshold(scores, 0.5)
    assert limit == pytest.approx(0.4) and threshold(torch.full((20,), 0.5), 0.5) > 0.5


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("score", [lac_scores, adaptive_scores, lambda p: adaptive_scores(p, charges(10, 0.1, 2))])
def test_new_samples_are_covered_as_often_as_is_asked_for(coverage, score):
    generator = torch.Generator().manual_seed(0)
    covered = []
    for _ in range(200):
        z = 2 * torch.randn(600, 10, generator=generator, dtype=torch.float64)
        answers = torch.multinomial(z.softmax(1), 1, generator=generator)
        mine = score((z * 0.5).softmax(1)).gather(1, answers)[:, 0]  # of a badly calibrated model
        covered.append(float((mine[100:] <= threshold(mine[:100], coverage)).double().mean()))
    low, high = coverage, coverage + 1 / 101
    deviation = math.sqrt(coverage * (1 - coverage) * (1 / 100 + 1 / 500) / 200)
    assert low - 3 * deviation < sum(covered) / len(covered) < high + 3 * deviation


def test_the_penalty_is_chosen_on_samples_of_its_own():
    generator = torch.Generator().manual_seed(0)
    z = 2 * torch.randn(400, 10, generator=generator, dtype=torch.float64)
    answers = torch.multinomial(z.softmax(1), 1, generator=generator)[:, 0]
    penalty, free = tuned(z.softmax(1), answers, 0.9)
    ranks = (z > z.gather(1, answers[:, None])).sum(1) + 1
    assert penalty in PENALTIES and free == int(ranks.sort().values[359])
    with pytest.raises(ValueError, match="at least two samples"):
        tuned(z.softmax(1)[:1], answers[:1], 0.9)
