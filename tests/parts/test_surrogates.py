"""Surrogates by hand, against closed forms and finite differences, and the exactness of spikes."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from sparsify.errors import RecipeError
from sparsify.parts.surrogates import SURROGATES, Surrogate, fire, step

DIGITS = torch.tensor(load_digits().images[:64], dtype=torch.float64) / 16
BY_HAND = {
    # the derivative at -1, 0 and 1/4, with the usual slope
    "atan": (1 / (1 + math.pi**2), 1.0, 1 / (1 + math.pi**2 / 16)),
    "sigmoid": (4 * math.e**4 / (1 + math.e**4) ** 2, 1.0, 4 * math.e / (1 + math.e) ** 2),
    "fast-sigmoid": (1 / 26**2, 1.0, 1 / 7.25**2),
    "gaussian": (2 / math.sqrt(math.pi) * math.exp(-4), 2 / math.sqrt(math.pi), 2 / math.sqrt(math.pi) * math.exp(-1 / 4)),
    "triangle": (0.0, 1.0, 0.75),
    "rectangle": (0.0, 1.0, 1.0),
    "straight-through": (1.0, 1.0, 1.0),
}  # fmt: skip


@pytest.fixture(name="potentials", params=[torch.float32, torch.float64], ids=str)
def from_digits(request):
    """Potentials minus a threshold: digits through a random layer, and exact zeros among them."""
    torch.manual_seed(0)
    with torch.no_grad():
        found = nn.Linear(64, 50).double()(DIGITS.flatten(1)) - 0.1
    found[:, 0] = 0.0
    return found.to(request.param)


def gradient(x, name, slope=None, weight=None):
    leaf = x.clone().requires_grad_()
    out = fire(leaf, name, slope)
    (found,) = torch.autograd.grad(out, leaf, torch.ones_like(x) if weight is None else weight)
    return found


def test_every_surrogate_has_a_case_by_hand():
    assert list(BY_HAND) == list(SURROGATES)
    assert all(found.name == name for name, found in SURROGATES.items())


@pytest.mark.parametrize("name", SURROGATES)
def test_gradient_and_closed_form_by_hand(name):
    x = torch.tensor([-1.0, 0.0, 0.25], dtype=torch.float64)
    want = torch.tensor(BY_HAND[name], dtype=torch.float64)
    torch.testing.assert_close(gradient(x, name), want, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(SURROGATES[name].derivative(x, SURROGATES[name].slope), want, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("slope", [None, 0.5, 3.0])
def test_autograd_gives_the_closed_form_times_what_comes_in(name, slope):
    found = SURROGATES[name]
    x = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    weight = torch.cos(x) * 10
    want = weight * found.derivative(x, found.slope if slope is None else slope)
    torch.testing.assert_close(gradient(x, name, slope, weight), want, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", SURROGATES)
def test_the_closed_form_is_the_slope_of_soft(name):
    """Central differences, away from the corners of clamped surrogates."""
    found, h = SURROGATES[name], 1e-5
    x = torch.linspace(-3, 3, 1000, dtype=torch.float64)
    x = x[((x.abs() - 0.5 / found.slope).abs() > 2 * h) & ((x.abs() - 1 / found.slope).abs() > 2 * h)]
    differences = (found.soft(x + h, found.slope) - found.soft(x - h, found.slope)) / (2 * h)
    torch.testing.assert_close(differences, found.derivative(x, found.slope), rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", SURROGATES)
def test_spikes_are_exactly_the_step(name, potentials):
    x = potentials.clone().requires_grad_()
    spikes = fire(x, name)
    assert spikes.dtype == x.dtype and spikes.requires_grad
    assert torch.equal(spikes, (potentials >= 0).to(x.dtype)) and torch.equal(spikes, step(potentials))
    assert 0 < spikes.mean() < 1 and spikes[:, 0].eq(1).all()


@pytest.mark.parametrize("name", ["atan", "sigmoid", "gaussian", "triangle"])
def test_another_association_is_not_exact(name):
    """Which is why `fire` adds a difference that is exactly 0."""
    x = torch.linspace(-2, 2, 10_001)
    soft = SURROGATES[name].soft(x, SURROGATES[name].slope)
    assert not torch.equal((step(x) + soft) - soft, step(x))


def test_atan_is_the_form_of_the_papers_bit_for_bit(potentials):
    """``atan(pi x) / pi + 0.5``, as it is written by hand in models."""
    x = potentials.clone().requires_grad_()
    soft = torch.atan(torch.pi * x) / torch.pi + 0.5
    weight = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    (want,) = torch.autograd.grad((x >= 0).to(x.dtype) + (soft - soft.detach()), x, weight)
    assert torch.equal(gradient(potentials, "atan", weight=weight), want)


def test_a_step_has_no_gradient_and_does_not_fire_on_nan():
    x = torch.tensor([-0.0, math.nan, 1e-45, -1e-45], requires_grad=True)
    assert step(x).tolist() == [1, 0, 1, 0] and not step(x).requires_grad


def test_unknown_names_and_slopes_are_refused():
    x = torch.zeros(2)
    with pytest.raises(RecipeError, match=r"no surrogate 'arctan'\. Nearest: atan"):
        fire(x, "arctan")
    for slope in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(RecipeError, match=r"finite number above 0, found .* Its usual slope is 25"):
            fire(x, "fast-sigmoid", slope)


def test_plugins_add_surrogates(potentials):
    with SURROGATES.forgetting():
        SURROGATES.register("half", Surrogate("half", 0.5, lambda x, slope: slope * x, torch.full_like))
        assert gradient(potentials, "half").eq(0.5).all()
