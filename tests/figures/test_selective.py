"""Risk and coverage by hand, against slow definitions and scikit-learn."""

from __future__ import annotations

from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_curve, roc_auc_score

from sparsify.errors import TrainingError
from sparsify.figures import bootstrap, metrics, selective
from sparsify.figures.selective import Selection, aurc, coverage_at_risk, excess_aurc, risk_coverage, thinned

FIVE = torch.tensor([0.9, 0.8, 0.8, 0.6, 0.5], dtype=torch.float64)
RIGHT = torch.tensor([True, False, True, True, False])
TWELVE = torch.tensor([0.05, 0.20, 0.40, 0.55, 0.61, 0.72, 0.80, 0.88, 0.93, 0.97, 0.999, 1.0], dtype=torch.float64)
CORRECT = torch.tensor([0, 0, 1, 0, 1, 1, 0, 1, 1, 1, 1, 0]).bool()


def drawn(seed, samples=60, levels=15):
    """Confidences with many ties, and answers that are right more often where the confidence is high."""
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.randint(1, levels + 1, (samples,), generator=generator).double() / levels
    return confidence, torch.rand(samples, generator=generator).double() < confidence


def test_the_curve_of_five_samples_has_four_steps():
    curve = risk_coverage(FIVE, RIGHT)
    assert curve.threshold.tolist() == [0.9, 0.8, 0.6, 0.5]
    assert (curve.answered.tolist(), curve.wrong.tolist()) == ([1, 3, 4, 5], [0, 1, 1, 2])
    assert curve.coverage.tolist() == [0.2, 0.6, 0.8, 1.0]
    assert curve.risk.tolist() == pytest.approx([0, 1 / 3, 1 / 4, 2 / 5])


def test_areas_and_auroc_of_five_samples():
    curve = risk_coverage(FIVE, RIGHT)
    assert aurc(curve) == pytest.approx((0 + 2 / 3 + 1 / 4 + 2 / 5) / 5)
    assert excess_aurc(curve) == pytest.approx(aurc(curve) - (1 / 4 + 2 / 5) / 5)  # three right, then two wrong
    assert selective.correctness_auroc(FIVE, RIGHT) == pytest.approx(4.5 / 6)


def test_area_of_twelve_samples():
    wrong = [1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5]  # of the first, the first two, ...
    whole = sum(Fraction(count, rank) for rank, count in enumerate(wrong, 1)) / 12
    best = sum(Fraction(count, 7 + count) for count in range(1, 6)) / 12
    curve = risk_coverage(TWELVE, CORRECT)
    assert aurc(curve) == pytest.approx(float(whole), abs=1e-12)
    assert excess_aurc(curve) == pytest.approx(float(whole - best), abs=1e-12)


def test_coverage_at_a_risk_is_the_last_point_that_is_low_enough():
    curve = risk_coverage(FIVE, RIGHT)
    assert coverage_at_risk(curve, 0.3) == Selection(4, 0.8, 0.25, 0.6)  # though the risk is 1/3 at the step before
    assert coverage_at_risk(curve, 0.25) == Selection(4, 0.8, 0.25, 0.6)
    assert coverage_at_risk(curve, 0.1) == Selection(1, 0.2, 0.0, 0.9)
    assert coverage_at_risk(curve, 1.0) == Selection(5, 1.0, 0.4, 0.5)
    assert coverage_at_risk(risk_coverage(FIVE, ~RIGHT), 0.4) == Selection(0, 0.0, 0.0, None)


def test_golden_auroc_of_right_and_wrong_answers():
    inside, outside = [0.9, 0.8, 0.85, 0.6, 0.95, 0.7, 0.99, 0.4], [0.5, 0.3, 0.65, 0.2, 0.75, 0.1]
    correct = torch.arange(14) < 8
    assert selective.correctness_auroc(torch.tensor(inside + outside), correct) == pytest.approx(0.875)


@pytest.mark.parametrize("seed", range(5))
def test_area_is_the_mean_risk_at_each_samples_own_confidence(seed):
    confidence, correct = drawn(seed)
    risks = [float((~correct[confidence >= own]).double().mean()) for own in confidence]
    assert aurc(risk_coverage(confidence, correct)) == pytest.approx(sum(risks) / len(risks), abs=1e-12)


def test_no_order_has_less_area_than_the_best_one():
    for correct in (torch.tensor([1, 0, 1, 0, 1, 1]).bool(), torch.tensor([0, 0, 0, 1, 0, 1]).bool()):
        curves = [risk_coverage(torch.tensor(order).double(), correct) for order in permutations(range(6))]
        least = min(aurc(curve) for curve in curves)
        for curve in curves:
            assert excess_aurc(curve) == pytest.approx(aurc(curve) - least, abs=1e-12)
        assert min(excess_aurc(curve) for curve in curves) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_risks_and_auroc_against_scikit_learn(seed):
    confidence, correct = drawn(seed)
    curve = risk_coverage(confidence, correct)
    precision, _, thresholds = precision_recall_curve(correct.numpy(), confidence.numpy())
    assert curve.threshold.tolist() == thresholds[::-1].tolist()
    assert curve.risk.tolist() == pytest.approx((1 - precision[:-1])[::-1].tolist(), abs=1e-12)
    wanted = roc_auc_score(correct.numpy(), confidence.numpy())
    assert selective.correctness_auroc(confidence, correct) == pytest.approx(wanted, abs=1e-12)


def test_nothing_depends_on_the_order_of_samples():
    confidence, correct = drawn(0, levels=4)
    first = risk_coverage(confidence, correct)
    for seed in range(5):
        order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
        curve = risk_coverage(confidence[order], correct[order])
        assert aurc(curve) == aurc(first) and excess_aurc(curve) == excess_aurc(first)
        assert np.array_equal(curve.answered, first.answered) and np.array_equal(curve.wrong, first.wrong)
        assert coverage_at_risk(curve, 0.2) == coverage_at_risk(first, 0.2)
        assert selective.correctness_auroc(confidence[order], correct[order]) == selective.correctness_auroc(
            confidence, correct
        )


@pytest.mark.parametrize(
    ("confidence", "correct", "area", "excess", "answered"),
    [
        ([0.9, 0.8, 0.7], [1, 1, 1], 0.0, 0.0, 3),
        ([0.9, 0.8, 0.7], [0, 0, 0], 1.0, 0.0, 0),
        ([0.9], [1], 0.0, 0.0, 1),
        ([0.9], [0], 1.0, 0.0, 0),
        ([0.5, 0.5, 0.5, 0.5], [1, 0, 1, 1], 0.25, 0.25 - 0.25 / 4, 0),
        ([0.0, 0.0], [1, 0], 0.5, 0.25, 0),
    ],
)
def test_samples_that_leave_no_choice(confidence, correct, area, excess, answered):
    confidence, correct = torch.tensor(confidence), torch.tensor(correct).bool()
    curve = risk_coverage(confidence, correct)
    assert (aurc(curve), excess_aurc(curve)) == pytest.approx((area, excess), abs=1e-12)
    assert coverage_at_risk(curve, 0.05).samples == answered
    mixed = bool(correct.any()) and not bool(correct.all())
    assert selective.correctness_auroc(confidence, correct) == (0.5 if mixed else None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value):
    broken = torch.where(torch.arange(5) == 2, value, FIVE)
    for call in (risk_coverage, selective.correctness_auroc):
        with pytest.raises(TrainingError, match="1 of 5 confidences are NaN or infinite"):
            call(broken, RIGHT)
        with pytest.raises(TrainingError, match="1 of 5 confidences"):
            call(broken, torch.ones(5).bool())
    with pytest.raises(TrainingError, match="1 of 10 probabilities"):
        metrics.top_label(torch.stack([broken, 1 - FIVE], 1), torch.zeros(5).long())


def test_the_confidence_is_that_of_the_predicted_class():
    confidence, correct = metrics.top_label(torch.tensor([[0.7, 0.3], [0.4, 0.6]]), torch.tensor([0, 0]))
    assert confidence.tolist() == pytest.approx([0.7, 0.6]) and correct.tolist() == [True, False]


def test_a_thinned_curve_keeps_its_ends_and_only_points_of_the_curve():
    curve = risk_coverage(*drawn(0, samples=500, levels=400))
    few = thinned(curve, 20)
    assert len(few.answered) == len(np.unique(few.answered)) == 20
    assert few.answered[[0, -1]].tolist() == curve.answered[[0, -1]].tolist()
    points = set(zip(curve.coverage.tolist(), curve.risk.tolist(), strict=True))
    assert set(zip(few.coverage.tolist(), few.risk.tolist(), strict=True)) <= points
    assert thinned(few, 20) is few and thinned(few, 2).answered.tolist() == few.answered[[0, -1]].tolist()


def test_drawn_samples_have_the_areas_of_their_own_curve():
    confidence, correct = drawn(3, samples=40)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.arange(40), *torch.randint(40, (6, 40), generator=generator)]
    draws = torch.stack([torch.bincount(some, minlength=40) for some in rows]).double().numpy()
    curves = [risk_coverage(confidence[some], correct[some]) for some in rows]
    assert selective.resampled_aurc(confidence, correct)(draws).tolist() == pytest.approx(
        [aurc(curve) for curve in curves], abs=1e-12
    )


def test_an_interval_tells_confidence_that_ranks_from_confidence_that_does_not():
    confidence, correct = drawn(1, samples=400)
    constant = torch.full_like(confidence, 0.9)
    ours, theirs = (selective.resampled_aurc(c, correct) for c in (confidence, constant))
    low, high = bootstrap.bootstrap_difference(ours, theirs, 400, resamples=200)
    difference = aurc(risk_coverage(confidence, correct)) - aurc(risk_coverage(constant, correct))
    assert low < difference < high < 0
    assert bootstrap.bootstrap_difference(ours, ours, 400, resamples=20) == (0.0, 0.0)
