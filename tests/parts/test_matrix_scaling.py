"""Matrix scaling reaches the optimum that an independent solver finds, and cross-validation chooses what a plain loop does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from sparsify.parts.calibrators import fit_temperature
from sparsify.parts.matrix_scaling import (
    GRID,
    L2,
    MIDDLE,
    MOST_CLASSES,
    choose_regularisation,
    fit_matrix_scaling,
)
from tests.cases import held_out_logits


def objective(matrix, bias, logits, labels, off_diagonal, intercept):
    """The documented objective, entry by entry of the formula."""
    classes = len(bias)
    beside = matrix - matrix.diag().diag()
    loss = torch.nn.functional.cross_entropy(logits @ matrix.T + bias, labels)
    odir = off_diagonal / (classes * (classes - 1)) * (beside**2).sum() + intercept / classes * (bias**2).sum()
    return loss + odir + L2 / 2 * (((matrix - torch.eye(classes)) ** 2).sum() + (bias**2).sum())


def solved(logits, labels, off_diagonal, intercept):
    """Its minimum by BFGS of scipy, with gradients by autograd, from W = 0: (W, b, value)."""
    classes = logits.shape[1]

    def value(flat):
        x = torch.tensor(flat, requires_grad=True)
        loss = objective(x[:-classes].reshape(classes, classes), x[-classes:], logits, labels, off_diagonal, intercept)
        loss.backward()
        return float(loss.detach()), x.grad.numpy()

    found = minimize(value, np.zeros(classes * (classes + 1)), jac=True, method="BFGS", options={"gtol": 1e-8})
    x = torch.tensor(found.x)
    return x[:-classes].reshape(classes, classes), x[-classes:], found.fun


def few(n=150, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(n, classes, generator=generator).double()
    return 3 * z, torch.multinomial(z.softmax(1), 1, generator=generator).squeeze(1)


@pytest.mark.parametrize(("off_diagonal", "intercept"), [(0.0, 0.0), (9.0, 0.1), (900.0, 10.0)])
def test_the_optimum_is_that_of_an_independent_solver_on_real_logits(off_diagonal, intercept):
    logits, labels = held_out_logits(400)
    temperature = fit_temperature(logits, labels)
    matrix, bias = fit_matrix_scaling(logits, labels, off_diagonal=off_diagonal, intercept=intercept)
    want, shift, value = solved(logits / temperature, labels, off_diagonal, intercept)
    found = objective(matrix * temperature, bias, logits / temperature, labels, off_diagonal, intercept)
    assert float(found) <= value + 1e-12
    torch.testing.assert_close(matrix * temperature, want, rtol=0, atol=3e-3)
    torch.testing.assert_close(bias, shift, rtol=0, atol=3e-3)


def test_the_gradient_vanishes_at_the_optimum():
    logits, labels = held_out_logits()
    temperature = fit_temperature(logits, labels)
    matrix, bias = fit_matrix_scaling(logits, labels, off_diagonal=1.0, intercept=0.1)
    parameters = [(matrix * temperature).requires_grad_(), bias.requires_grad_()]
    slopes = torch.autograd.grad(objective(*parameters, logits / temperature, labels, 1.0, 0.1), parameters)
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-8


def test_regularisation_leads_to_a_diagonal_without_bias():
    logits, labels = held_out_logits(400)
    temperature = fit_temperature(logits, labels)
    matrix, bias = fit_matrix_scaling(logits, labels, off_diagonal=1e9, intercept=1e9)
    torch.testing.assert_close(matrix, matrix.diag().diag(), rtol=0, atol=1e-7 / temperature)
    torch.testing.assert_close(bias, torch.zeros(10).double(), rtol=0, atol=1e-7)
    nll = torch.nn.functional.cross_entropy
    assert float(nll(logits @ matrix.T, labels)) <= float(nll(logits / temperature, labels))


def test_a_mixture_of_classes_is_undone():
    generator = torch.Generator().manual_seed(0)
    z = 2 * torch.randn(20000, 3, generator=generator).double()
    labels = torch.multinomial(z.softmax(1), 1, generator=generator).squeeze(1)
    mixing = torch.tensor([[1.0, 0.4, 0.0], [0.0, 1.0, -0.3], [0.2, 0.0, 1.0]]).double()
    matrix, _ = fit_matrix_scaling(2 * z @ mixing.T, labels, off_diagonal=0.0, intercept=0.0)
    found = matrix @ (2 * mixing)
    found = found - found.mean(0) + 1 / 3  # a number added to all scores of a sample changes nothing
    torch.testing.assert_close(found, torch.eye(3).double(), rtol=0, atol=0.05)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_fit_does_not_depend_on_the_scale_of_the_logits(scale):
    logits, labels = few()
    want, bias = fit_matrix_scaling(logits, labels, off_diagonal=1.0, intercept=0.1)
    found, shift = fit_matrix_scaling(logits * scale, labels, off_diagonal=1.0, intercept=0.1)
    torch.testing.assert_close(found * scale, want, rtol=0, atol=1e-6)
    torch.testing.assert_close(shift, bias, rtol=0, atol=1e-6)


def test_cross_validation_chooses_what_a_plain_loop_does():
    logits, labels = few()
    scores, folds = logits / fit_temperature(logits, labels), [0] * 150
    for label in range(3):
        for turn, sample in enumerate(i for i in range(150) if labels[i] == label):
            folds[sample] = (turn + sum(int(labels[i] < label) for i in range(150))) % 5
    part = torch.tensor(folds)

    def left_out(weight, bias):
        total = 0.0
        for fold in range(5):
            matrix, shift, _ = solved(scores[part != fold], labels[part != fold], weight * 6, bias * 3)
            rows = scores[part == fold] @ matrix.T + shift
            total += float(torch.nn.functional.cross_entropy(rows, labels[part == fold], reduction="sum"))
        return total

    weight = min(GRID, key=lambda weight: left_out(weight, MIDDLE))
    bias = min(GRID, key=lambda bias: left_out(weight, bias))
    assert choose_regularisation(logits, labels) == (weight * 6, bias * 3)


def test_mixed_classes_are_regularised_less_than_classes_that_are_not():
    logits, labels = few(1000)
    mixing = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -0.5], [0.5, 0.0, 1.0]], dtype=torch.float64)
    assert choose_regularisation(logits @ mixing.T, labels)[0] < choose_regularisation(logits, labels)[0]


def test_one_sample_is_regularised_most():
    logits, labels = held_out_logits()
    assert choose_regularisation(logits[:1], labels[:1]) == (GRID[0] * 90, GRID[0] * 10)


@pytest.mark.parametrize("rows", ["all right", "all wrong", "two classes", "a class without samples"])
def test_degenerate_samples_have_a_finite_optimum(rows):
    logits, labels = torch.eye(4).double().repeat(5, 1), torch.arange(4).repeat(5)
    if rows == "all wrong":
        labels = (labels + 1) % 4
    elif rows == "two classes":
        logits, labels = logits[:, :2] + 0.1 * torch.arange(20).double()[:, None], labels % 2
    elif rows == "a class without samples":
        logits, labels = few(100, 4)[0], few(100)[1]
    off_diagonal, intercept = choose_regularisation(logits, labels)
    matrix, bias = fit_matrix_scaling(logits, labels, off_diagonal=off_diagonal, intercept=intercept)
    assert bool(matrix.isfinite().all()) and bool(bias.isfinite().all())
    nll = torch.nn.functional.cross_entropy
    assert float(nll(logits @ matrix.T + bias, labels)) <= float(nll(logits, labels))


def test_what_cannot_be_fitted_is_named():
    with pytest.raises(ValueError, match=f"2 to {MOST_CLASSES} classes, found 201"):
        fit_matrix_scaling(torch.zeros(2, 201), torch.arange(2), off_diagonal=1.0, intercept=1.0)
    with pytest.raises(ValueError, match="hold infinity"):
        choose_regularisation(torch.tensor([[0.0, -torch.inf], [1.0, 0.0]]), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match=r"expected logits \[N, K\]"):
        choose_regularisation(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
