"""The error of individual calibration as a loss, by hand; its gradient; and which samples are set aside."""

from __future__ import annotations

import pytest
import torch

from sparsify.parts.individual import IndividualCalibration, stratified
from sparsify.parts.jackknife import Jackknife

PLAN = IndividualCalibration(weight=0.25, refresh=1, samples=8, coverage=0.5, damping=0.5)
STILL = Jackknife(torch.zeros(2, 2, 2).double(), torch.tensor([0.2, 0.4]).double())
"""Two samples without influence: intervals are symmetric around p of the last layer."""


def test_worked_by_hand():
    # The last layer gives equal logits, so each centre is 1/2; the network in train mode is surer of both samples.
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]], requires_grad=True)
    error = PLAN.error(logits, STILL, torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2))
    confidence = [0.88079708, 0.73105858]
    assert error.item() == pytest.approx(sum(confidence) / 2 - 0.5)
    (gradient,) = torch.autograd.grad(error, logits)
    slopes = [p * (1 - p) / 2 for p in confidence]
    assert torch.allclose(gradient, torch.tensor([[slopes[0], -slopes[0]], [-slopes[1], slopes[1]]]))
    assert PLAN.joined(torch.tensor(2.0), error).item() == pytest.approx(1.5 + 0.25 * error.item())


def test_the_centre_gives_no_gradient_to_the_last_layer():
    weight = torch.ones(2, 1, requires_grad=True)
    error = PLAN.error(torch.tensor([[1.0, 0.0]]), STILL, torch.ones(1, 1), weight, torch.zeros(2))
    assert not error.requires_grad


def test_the_centre_follows_a_confidence_that_is_wrong_everywhere():
    # Labels are drawn from the layer with factor 1; with factor 5, confidence is 12 points too high, and the error stays where it was.
    generator = torch.Generator().manual_seed(0)
    weight, x, new = (torch.randn(rows, 20, generator=generator).double() for rows in (3, 400, 2000))
    labels, outcomes = ((some @ weight.T).softmax(1).multinomial(1, generator=generator)[:, 0] for some in (x, new))
    found = dict[int, tuple[float, float]]()
    for factor in (1, 5):
        plan, logits = IndividualCalibration(0.5, 1, 400, 0.9, 1e-2), new @ (factor * weight).T
        pieces = plan.pieces(x, labels, factor * weight, torch.zeros(3))
        right = (logits.argmax(1) == outcomes).double().mean()
        gap = float(logits.softmax(1).amax(1).mean() - right)
        found[factor] = float(plan.error(logits, pieces, new, factor * weight, torch.zeros(3))), gap
    assert abs(found[1][1]) < 0.02 < 0.1 < found[5][1]
    assert found[5][0] < found[1][0] < 0.005


def test_how_many_samples_a_last_layer_allows():
    assert PLAN.fits(4, 2) == 8 and PLAN.fits(512, 1000) == 4


def test_drawn_samples_have_the_shares_of_all_classes():
    labels = torch.tensor([0] * 80 + [1] * 15 + [2] * 5)
    rows = stratified(labels, 20, torch.Generator().manual_seed(1))
    assert len(rows.unique()) == 20 and rows.tolist() == sorted(rows.tolist())
    assert labels[rows].bincount().tolist() == [16, 3, 1]
    assert torch.equal(rows, stratified(labels, 20, torch.Generator().manual_seed(1)))
    assert not torch.equal(rows, stratified(labels, 20, torch.Generator().manual_seed(2)))
