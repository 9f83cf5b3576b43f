"""Calibrators reach the optimum, and say so when there is none."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize

from sparsify.parts.calibrators import (
    NotIdentifiableError,
    fit_ensemble_temperature,
    fit_temperature,
    fit_vector_scaling,
)
from tests.cases import held_out_logits


def sample(scale: float, bias: torch.Tensor | float = 0.0, n: int = 5000):
    generator = torch.Generator().manual_seed(0)
    z = 2 * torch.randn(n, 10, generator=generator).double()
    labels = torch.multinomial(z.softmax(1), 1, generator=generator).squeeze(1)
    return (z - bias) * scale, labels


@pytest.mark.parametrize("true", [0.5, 1.0, 2.0, 4.0, 8.0])
def test_temperature_is_recovered_and_stationary(true):
    logits, labels = sample(true, n=20000)
    found = fit_temperature(logits, labels)
    assert abs(found / true - 1) < 0.02

    def loss(temperature):
        return float(torch.nn.functional.cross_entropy(logits / temperature, labels))

    assert loss(found) <= min(loss(found * 1.001), loss(found / 1.001))


def test_degenerate_temperatures_are_named():
    logits = torch.eye(3).double().repeat(4, 1)
    labels = torch.arange(3).repeat(4)
    with pytest.raises(ValueError, match="classify all held-out data correctly"):
        fit_temperature(logits, labels)
    with pytest.raises(ValueError, match="no better than chance"):
        fit_temperature(-logits, labels)
    with pytest.raises(NotIdentifiableError, match="equal for all classes"):
        fit_temperature(torch.full((12, 3), 5.0), labels)
    ruled_out = logits.index_fill(1, torch.tensor([1]), -torch.inf)
    with pytest.raises(NotIdentifiableError, match="its own class"):
        fit_temperature(ruled_out, labels)
    with pytest.raises(ValueError, match="NaN"):
        fit_temperature(logits * float("nan"), labels)


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 3000.0, 1e9])
def test_the_fit_does_not_depend_on_the_scale_of_the_logits(scale):
    logits, labels = sample(2.0, n=500)
    assert fit_temperature(logits * scale, labels) == pytest.approx(scale * fit_temperature(logits, labels), rel=1e-9)
    a, b = fit_vector_scaling(logits, labels)
    found, bias = fit_vector_scaling(logits * scale, labels)
    torch.testing.assert_close(found * scale, a, rtol=1e-5, atol=0)
    torch.testing.assert_close(bias, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("low", [-1e4, -1e9, -torch.inf])
def test_a_class_that_is_ruled_out_does_not_move_the_temperature(low):
    logits, labels = sample(2.0, n=500)
    wide = torch.cat([logits, torch.full((500, 1), low, dtype=torch.float64)], 1)
    assert fit_temperature(wide, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-9)


def test_vector_scaling_recovers_scale_and_bias():
    bias = torch.linspace(-1, 1, 10).double()
    logits, labels = sample(2.0, bias, n=20000)
    a, b = fit_vector_scaling(logits, labels)
    corrected = torch.nn.functional.cross_entropy(logits * a + b, labels)
    ideal = torch.nn.functional.cross_entropy(logits / 2 + bias, labels)
    assert float(corrected) <= float(ideal) + 1e-4
    assert (a - 0.5).abs().max() < 0.05


def mixed_nll(logits, labels, temperature, shares):
    tables = ((logits / temperature).softmax(1), logits.softmax(1), torch.full_like(logits, 1 / logits.shape[1]))
    mixed = sum(float(share) * table for share, table in zip(shares, tables, strict=True))
    return float(-mixed.gather(1, labels[:, None]).log().mean())


def sure_and_wrong(share, n=2000):
    """Logits that say little, and labels that are drawn anew for a share of the samples."""
    logits, labels = sample(1.0, n=n)
    generator = torch.Generator().manual_seed(1)
    drawn = torch.rand(n, generator=generator) < share
    return logits, labels.where(~drawn, torch.randint(0, 10, (n,), generator=generator))


@pytest.mark.parametrize("data", [held_out_logits(600), sample(3.0, n=600), sure_and_wrong(0.1), sure_and_wrong(0.5)])
def test_the_shares_of_an_ensemble_are_the_best(data):
    logits, labels = data
    temperature, shares = fit_ensemble_temperature(logits, labels)
    assert temperature == fit_temperature(logits, labels)
    assert min(shares) >= 0 and sum(shares) == pytest.approx(1, abs=1e-12)
    found = mixed_nll(logits, labels, temperature, shares)
    assert found <= mixed_nll(logits, labels, temperature, (1, 0, 0)) + 1e-12

    def by_odds(x):  # any point of the simplex but its border
        return mixed_nll(logits, labels, temperature, torch.tensor([0.0, *x], dtype=torch.float64).softmax(0))

    ends = [minimize(by_odds, start, method="Nelder-Mead").fun for start in ([0.0, 0.0], [-4.0, -4.0], [4.0, 0.0])]
    assert found <= min(ends) + 1e-9


def test_labels_drawn_anew_get_an_even_share():
    logits, labels = sure_and_wrong(0.2, n=20000)
    _, shares = fit_ensemble_temperature(logits, labels)
    assert 0.02 < shares[2] < 0.25


def test_an_ensemble_of_degenerate_samples_is_refused():
    with pytest.raises(NotIdentifiableError, match="classify all held-out data correctly"):
        fit_ensemble_temperature(torch.eye(3), torch.arange(3))
