"""Calibrators reach the optimum, and say so when there is none."""

from __future__ import annotations

import pytest
import torch

from sparsify.parts.calibrators import fit_temperature, fit_vector_scaling


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
    with pytest.raises(ValueError, match="NaN"):
        fit_temperature(logits * float("nan"), labels)


def test_vector_scaling_recovers_scale_and_bias():
    bias = torch.linspace(-1, 1, 10).double()
    logits, labels = sample(2.0, bias, n=20000)
    a, b = fit_vector_scaling(logits, labels)
    corrected = torch.nn.functional.cross_entropy(logits * a + b, labels)
    ideal = torch.nn.functional.cross_entropy(logits / 2 + bias, labels)
    assert float(corrected) <= float(ideal) + 1e-4
    assert (a - 0.5).abs().max() < 0.05
