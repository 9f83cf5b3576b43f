"""Leave-one-out parameters against training again, coverage on held-out digits, and intervals worked by hand."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from sparsify.parts import jackknife as module
from sparsify.parts.jackknife import affordable, centres, intervals, jackknife


def newton(x: Tensor, labels: Tensor, start: Tensor, damping: float = 1e-9) -> Tensor:
    """Fit a softmax layer [K, d + 1] to its mean cross-entropy; ``x`` has a column of ones."""
    layer, wanted = start.clone(), torch.nn.functional.one_hot(labels, len(start)).double()
    for _ in range(60):
        p = (x @ layer.T).softmax(1)
        gradient = ((p - wanted).T @ x / len(x)).flatten()
        step = torch.linalg.solve(module._hessian(x, p, damping), gradient)
        layer = layer - step.view_as(layer)
        if float(step.abs().max()) < 1e-11:
            break
    return layer


@functools.cache
def components(width: int = 5) -> tuple[Tensor, Tensor]:
    """The first principal components of the digits, float64, in a fixed random order, and the digits."""
    images, digits = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(3))
    x = torch.tensor(images / 16)[order]
    x = x - x.mean(0)
    return x @ torch.linalg.svd(x, full_matrices=False).Vh[:width].T, torch.tensor(np.asarray(digits))[order]


@pytest.mark.parametrize("classes", [2, 3])
def test_agrees_with_training_again_without_the_sample(classes):
    features, digits = components()
    features, labels = features[:1000], digits[:1000] % classes
    x = torch.cat([features, torch.ones(1000, 1)], 1).double()
    layer = newton(x, labels, torch.zeros(classes, 6).double())
    found = jackknife(features, labels, layer[:, :-1], layer[:, -1], damping=1e-9)
    for i in range(0, 1000, 50):
        kept = torch.arange(1000) != i
        shift = newton(x[kept], labels[kept], layer) - layer
        shift = shift - shift.mean(0)  # a shift that all classes share changes no probability
        assert float((found.shifts[i] - shift).norm() / shift.norm()) < 0.05
        p = (x[i] @ (layer + shift).T).softmax(0)
        assert found.residuals[i].item() == pytest.approx(
            abs(float(p.argmax() == labels[i]) - float(p.max())), abs=1e-3
        )


def test_worked_by_hand():
    # Two samples without features, one of each class, and equal logits: the gradient of sample 0 is (-1/2, 1/2), an eigenvector of the
    # Hessian with eigenvalue 1/2. With damping 1/2, the logits without sample 0 are its half, (-1/4, 1/4), so that p of class 1 is
    # 1 / (1 + exp(-1/2)) = .62246, and .37754 without sample 1. The wrong class is
    # predicted with .62246, which is the residual.
    found = jackknife(torch.zeros(2, 1), torch.tensor([0, 1]), torch.zeros(2, 1), torch.zeros(2), damping=0.5)
    assert found.shifts.tolist() == [[[0.0, -0.25], [0.0, 0.25]], [[0.0, 0.25], [0.0, -0.25]]]
    assert found.residuals.tolist() == pytest.approx([0.6224593312, 0.6224593312])
    # lower: a quarter of the way from -.24492 to 0 is -.18369; upper: three quarters from 1 to 1.24492 are 1.18369
    new = (torch.zeros(1, 1), torch.tensor([1]), torch.zeros(2, 1), torch.zeros(2))
    lower, upper = module._bounds(found, *new, 0.5)
    assert lower.item() == pytest.approx(-0.18368900) and upper.item() == pytest.approx(1.18368900)
    assert [bound.item() for bound in intervals(found, *new, coverage=0.5)] == [0, 1]
    assert centres(found, *new, coverage=0.5).item() == pytest.approx(0.5)


def test_a_loop_over_samples_finds_the_same_intervals():
    features, digits = components()
    x, labels = features[:40], digits[:40] % 3
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(3, 5, generator=generator).double(), torch.randn(3, generator=generator).double()
    found, query = jackknife(x, labels, weight, bias), features[40:70]
    chosen = (query @ weight.T + bias).argmax(1)
    lower, upper = intervals(found, query, chosen, weight, bias, coverage=0.8)
    for row, k in enumerate(chosen.tolist()):
        below, above = [], []
        for i in range(40):
            w, b = weight + found.shifts[i, :, :-1], bias + found.shifts[i, :, -1]
            own = (x[i] @ w.T + b).softmax(0)  # at sample i itself, wherever it is among the samples
            residual = abs(float(labels[i] == own.argmax()) - float(own.max()))
            p = float((query[row] @ w.T + b).softmax(0)[k])
            below.append(p - residual)
            above.append(p + residual)
        assert lower[row].item() == pytest.approx(max(0.0, np.quantile(below, 0.1)), abs=1e-12)
        assert upper[row].item() == pytest.approx(min(1.0, np.quantile(above, 0.9)), abs=1e-12)


def test_both_ways_to_solve_agree_and_the_hessian_is_that_of_autograd():
    features, digits = components(20)
    x, labels = module._extended(features[:30]), digits[:30] % 4
    layer = torch.randn(4, 21, generator=torch.Generator().manual_seed(0)).double()
    p = (x @ layer.T).softmax(1)
    errors = p - torch.nn.functional.one_hot(labels, 4)
    hessian = module._hessian(x, p, 0.01)

    def loss(values: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(x @ values.view(4, 21).T, labels)

    wanted = torch.autograd.functional.hessian(loss, layer.flatten())
    assert torch.allclose(hessian, wanted + 0.01 * torch.eye(84), atol=1e-12)  # type: ignore[arg-type]
    gradients = (errors[:, :, None] * x[:, None, :]).flatten(1)
    direct = torch.linalg.solve(hessian, gradients.T).T
    assert torch.allclose(module._by_samples(x, p, errors, 0.01), direct, atol=1e-9)
    by_few = jackknife(features[:30], labels, layer[:, :-1], layer[:, -1])  # 30 samples, 21 columns: over parameters
    by_fewer = jackknife(features[:15], labels[:15], layer[:, :-1], layer[:, -1])  # 15 samples: over samples
    assert by_few.shifts.shape == (30, 4, 21) and by_fewer.shifts.shape == (15, 4, 21)


@pytest.mark.parametrize("classes", [2, 10])
def test_intervals_cover_held_out_outcomes(classes):
    features, digits = components(16)
    labels = (digits == 3).long() if classes == 2 else digits
    x = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    layer = newton(x[:400], labels[:400], torch.zeros(classes, 17).double(), damping=1e-2)
    found = jackknife(features[:400], labels[:400], layer[:, :-1], layer[:, -1])
    new, y = features[400:], labels[400:]
    chosen = torch.ones_like(y) if classes == 2 else (new @ layer[:, :-1].T + layer[:, -1]).argmax(1)
    lower, upper = intervals(found, new, chosen, layer[:, :-1], layer[:, -1], coverage=0.9)
    outcome = (y == chosen).double()
    inside = float(((outcome >= lower) & (outcome <= upper)).double().mean())
    assert 0.87 <= inside < 1, inside  # a share of 400 residuals has a standard deviation of 0.015
    if (
        classes > 2
    ):  # residuals of one class for all samples are too small for the samples that are predicted to be of that class
        p, tail = torch.einsum("ikd,id->ik", layer + found.shifts, x[:400]).softmax(1), 0.05
        narrow = (torch.eye(10)[labels[:400]] - p).abs().quantile(1 - tail, 0)[chosen]
        confidence = (new @ layer[:, :-1].T + layer[:, -1]).softmax(1).amax(1)
        assert float(((outcome - confidence).abs() <= narrow).double().mean()) < 0.8


def test_how_many_samples_are_affordable():
    assert affordable(16, 2) is None and affordable(512, 10) == 409 and affordable(2048, 1000) == 4


@pytest.mark.parametrize(
    ("labels", "width", "damping"), [([0], 2, 0.1), ([0, 1], 3, 0.1), ([0, 1], 2, 0.0), ([0, 1, 1], 2, 0.1)]
)
def test_what_does_not_fit_is_refused(labels, width, damping):
    with pytest.raises(ValueError, match=r"expected features \[n, 2\] and labels \[n\]"):
        jackknife(
            torch.zeros(min(len(labels), 2), width),
            torch.tensor(labels),
            torch.zeros(2, 2),
            torch.zeros(2),
            damping=damping,
        )


def test_a_coverage_is_a_share():
    found = jackknife(torch.zeros(2, 1), torch.tensor([0, 1]), torch.zeros(2, 1), torch.zeros(2))
    with pytest.raises(ValueError, match=r"a coverage between 0 and 1, found 90"):
        centres(found, torch.zeros(1, 1), torch.tensor([1]), torch.zeros(2, 1), torch.zeros(2), coverage=90)
