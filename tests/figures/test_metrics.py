"""Metrics against hand-worked values, slow loops, and scikit-learn."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from sparsify.figures import metrics

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


def test_largest_gap_of_twelve_samples():
    # 0.80 is alone in its bin and wrong; the others are 0.55 (wrong), 0.61, 0.72, 0.88 and 0.93, and 0.97, 0.999 and 1 (one wrong).
    p = torch.stack([CONFIDENCE[3:], 1 - CONFIDENCE[3:]], 1)
    assert metrics.mce(p, (~CORRECT[3:]).long()) == pytest.approx(0.8)
    assert metrics.mce(p, (~CORRECT[3:]).long(), bins=1) == pytest.approx(abs(6 / 9 - float(CONFIDENCE[3:].mean())))


def test_debiased_square_of_twelve_samples():
    # Four bins of three, 1, 2, 2 and 2 of them right: the square of each loses (1/3 · 2/3) / 2.
    assert metrics.debiased_square(CONFIDENCE, CORRECT, bins=4) == pytest.approx(-0.070890, abs=1e-6)
    assert metrics.debiased_square(CONFIDENCE, CORRECT, bins=4) + 1 / 9 == pytest.approx(0.040221, abs=1e-6)
    assert metrics.debiased_square(CONFIDENCE, CORRECT, bins=12) == 0  # bins of one sample


def test_debiased_error_shares_bins_between_equal_confidences_and_is_no_less_than_0():
    p = torch.tensor([[0.9, 0.1]] * 6 + [[0.6, 0.4]] * 4, dtype=torch.float64)
    y = torch.tensor([1, 1, 0, 0, 0, 0, 0, 0, 0, 0])
    # 0.6: all 4 right, gap 0.4. 0.9: 4 of 6 right, gap 7/30, less (2/3 · 1/3) / 5.
    wanted = (4 * 0.4**2 + 6 * ((7 / 30) ** 2 - 2 / 45)) / 10
    for order in (torch.arange(10), torch.tensor([5, 0, 9, 3, 6, 1, 8, 2, 7, 4])):
        assert metrics.debiased_l2(p[order], y[order], bins=5) == pytest.approx(wanted**0.5)
    right = torch.tensor([0, 0, 0, 1] * 3)
    assert metrics.debiased_l2(torch.tensor([[0.75, 0.25]] * 12), right) == 0  # as right as it is confident
    assert metrics.debiased_l2(torch.tensor([[0.75, 0.25]]), torch.tensor([1])) == 0  # one sample


def test_debiased_square_of_calibrated_models_is_0_on_average():
    generator, found, biased = torch.Generator().manual_seed(0), [], []
    for _ in range(40):
        confidence = torch.rand(200, generator=generator).double() / 2 + 0.5
        correct = torch.rand(200, generator=generator).double() < confidence
        found.append(metrics.debiased_square(confidence, correct, bins=15))
        parts = torch.tensor_split(confidence.argsort(), 15)
        gaps = [(float(correct[p].double().mean() - confidence[p].mean()), len(p)) for p in parts]
        biased.append(sum(n * gap**2 for gap, n in gaps) / 200)
    assert abs(sum(found)) < sum(biased) / 4


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


def test_average_precision_by_hand_and_against_scikit_learn():
    # Ranked: + 0.9, - 0.8, + 0.7. Precision at the two hits 1 and 2/3, recall steps 1/2 each.
    assert metrics.aupr(torch.tensor([0.9, 0.7]), torch.tensor([0.8])) == pytest.approx((1 + 2 / 3) / 2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        inside = torch.randint(0, 12, (30,), generator=generator) / 12 + 0.2  # many ties
        outside = torch.randint(0, 12, (17,), generator=generator) / 12
        scores, truth = torch.cat([inside, outside]), [1] * 30 + [0] * 17
        assert metrics.aupr(inside, outside) == pytest.approx(average_precision_score(truth, scores), abs=1e-12)


def test_both_conventions_of_fpr95_and_both_sides_of_aupr():
    inside = torch.tensor([0.9, 0.8, 0.85, 0.6, 0.95, 0.7, 0.99, 0.4])
    outside = torch.tensor([0.5, 0.3, 0.65, 0.2, 0.75, 0.1])
    assert metrics.fpr_at_95_tpr_outside(inside, outside) == pytest.approx(0.375)
    truth = [1] * 8 + [0] * 6
    scores = torch.cat([inside, outside])
    assert metrics.aupr(inside, outside) == pytest.approx(average_precision_score(truth, scores))
    assert metrics.aupr(-outside, -inside) == pytest.approx(average_precision_score([1 - t for t in truth], -scores))


def test_flips_of_five_samples():
    first = torch.eye(3)[[0, 0, 1, 2, 2]]
    second = torch.eye(3)[[0, 1, 1, 1, 0]]
    labels = torch.tensor([0, 0, 2, 1, 2])
    found = metrics.flips(first, second, labels)
    assert (found.lost, found.gained, found.changed) == (2, 1, 3)  # samples 1 and 4 lost, 3 gained, 2 wrong twice
    assert (found.class_lost, found.class_gained, found.class_samples) == ([1, 0, 1], [0, 1, 0], [2, 1, 2])


def test_flips_explain_the_difference_of_accuracies():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 300, 5, generator=generator).unbind()
    labels = torch.randint(5, (300,), generator=generator)
    found = metrics.flips(first, second, labels)
    difference = metrics.accuracy(second, labels) - metrics.accuracy(first, labels)
    assert (found.gained - found.lost) / 300 == pytest.approx(difference)
    assert sum(found.class_lost) == found.lost and sum(found.class_gained) == found.gained
    assert sum(found.class_samples) == 300


def test_the_signed_gap_of_two_samples():
    p = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
    assert metrics.signed_gap(p, torch.tensor([0, 0])) == pytest.approx(0.75 - 0.5)


def test_adaptive_and_classwise_errors_and_auroc_against_loops():
    generator = torch.Generator().manual_seed(1)
    p = torch.rand(203, 4, generator=generator).double().pow(3)
    p /= p.sum(1, keepdim=True)
    y = torch.randint(4, (203,), generator=generator)
    rows = sorted(range(203), key=lambda i: float(p[i].max()))
    sizes = [203 // 15 + (b < 203 % 15) for b in range(15)]
    total, start = 0.0, 0
    for size in sizes:
        part = rows[start : start + size]
        start += size
        total += abs(sum(float(p[i].argmax() == y[i]) - float(p[i].max()) for i in part)) / 203
    assert metrics.adaptive_ece(p, y) == pytest.approx(total, abs=1e-12)
    total = 0.0
    for k in range(4):
        for b in range(15):
            part = [i for i in range(203) if b / 15 < float(p[i, k]) <= (b + 1) / 15]
            total += abs(sum(float(y[i] == k) - float(p[i, k]) for i in part)) / 203 / 4
    assert metrics.classwise_ece(p, y) == pytest.approx(total, abs=1e-12)
    inside, outside = p[:40, 0].round(decimals=1), p[40:90, 1].round(decimals=1)
    pairs = [0.5 if a == b else float(a > b) for a in inside.tolist() for b in outside.tolist()]
    assert metrics.auroc(inside, outside) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
