"""Metrics against hand-worked values, slow loops, and scikit-learn."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import roc_auc_score

from sparsify.parts import metrics

CONFIDENCE = torch.tensor([0.05, 0.20, 0.40, 0.55, 0.61, 0.72, 0.80, 0.88, 0.93, 0.97, 0.999, 1.0], dtype=torch.float64)
CORRECT = torch.tensor([0, 0, 1, 0, 1, 1, 0, 1, 1, 1, 1, 0]).bool()
LOGITS = torch.tensor([[2, 1, 0.1], [0.5, 2.5, -0.5], [1, 1.2, 0.8], [-1, 0, 3]]).double()
LABELS = torch.tensor([0, 0, 2, 2])


@pytest.mark.parametrize(("bins", "expected"), [(15, 0.335750), (10, 0.277417)])
def test_equal_width_error_of_twelve_samples(bins, expected):
    table = metrics.bin_by_width(CONFIDENCE, CORRECT, bins=bins)
    assert sum(row.count for row in table) == 12
    assert abs(metrics._gap(table) - expected) < 1e-6


def test_equal_mass_error_of_twelve_samples():
    assert abs(metrics.equal_mass_error(CONFIDENCE, CORRECT, bins=4) - 0.170750) < 1e-6


def test_nll_and_brier_of_four_samples():
    probabilities = LOGITS.softmax(1)
    assert abs(metrics.nll(probabilities, LABELS) - 0.991165) < 1e-6
    assert abs(metrics.brier(probabilities, LABELS) - 0.623306) < 1e-6
    assert metrics.accuracy(probabilities, LABELS) == pytest.approx(0.5)


def test_classwise_error_of_five_samples():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4], [0.2, 0.7, 0.1], [0.5, 0.25, 0.25]]).double()
    assert abs(metrics.classwise_ece(p, torch.tensor([0, 1, 0, 2, 0])) - 0.36) < 1e-9


def test_ece_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(500, 7, generator=generator).double().softmax(1)
    y = torch.randint(7, (500,), generator=generator)
    confidence, predicted = p.max(1)
    total = 0.0
    for i in range(15):
        rows = [j for j in range(500) if i / 15 < float(confidence[j]) <= (i + 1) / 15]
        if rows:
            hits = sum(int(predicted[j] == y[j]) for j in rows) / len(rows)
            total += len(rows) / 500 * abs(hits - sum(float(confidence[j]) for j in rows) / len(rows))
    assert abs(metrics.ece(p, y) - total) < 1e-12


def test_auroc_and_fpr():
    inside = torch.tensor([0.9, 0.8, 0.85, 0.6, 0.95, 0.7, 0.99, 0.4])
    outside = torch.tensor([0.5, 0.3, 0.65, 0.2, 0.75, 0.1])
    assert metrics.auroc(inside, outside) == pytest.approx(0.875)
    assert metrics.fpr_at_95_tpr(inside, outside) == pytest.approx(0.5)
    scores = torch.cat([inside, outside, torch.tensor([0.5, 0.5])])
    truth = [1] * 8 + [0] * 6 + [1, 0]
    ours = metrics.auroc(scores[[*range(8), 14]], scores[[*range(8, 14), 15]])
    assert ours == pytest.approx(roc_auc_score(truth, scores))
