"""The threshold of accepted answers: its bound by hand, and its guarantee over many draws."""

from __future__ import annotations

import math

import pytest
import torch

from sparsify.parts.rejection import acceptance, upper_bound


def test_the_exact_binomial_bound():
    assert upper_bound(0, 58, 0.05) == pytest.approx(1 - 0.05 ** (1 / 58))  # no event in n samples
    assert upper_bound(5, 5, 0.05) == 1.0
    share = upper_bound(3, 100, 0.1)
    assert sum(math.comb(100, k) * share**k * (1 - share) ** (100 - k) for k in range(4)) == pytest.approx(0.1)


def test_samples_of_equal_confidence_are_accepted_together():
    confidence = torch.cat([torch.full((300,), 0.9), torch.full((100,), 0.5)])
    found = acceptance(confidence, confidence > 0.6, 0.05, 0.1)
    assert (found.accepted, found.wrong) == (300, 0) and 0.5 < found.threshold < 0.9 and found.bound <= 0.05


def test_nothing_is_accepted_where_nothing_is_sure():
    found = acceptance(torch.linspace(0, 1, 100), torch.arange(100) % 2 == 0, 0.05, 0.1)
    assert (found.threshold, found.accepted, found.bound) == (math.inf, 0, 0.0)
    with pytest.raises(ValueError, match="at least one sample"):
        acceptance(torch.tensor([]), torch.tensor([]).bool(), 0.05, 0.1)


def test_the_risk_of_new_answers_is_larger_in_few_draws_only():
    generator = torch.Generator().manual_seed(0)
    broken, coverage = 0, []
    for _ in range(100):
        u = torch.rand(2000, generator=generator)
        right = torch.rand(2000, generator=generator) > u**4  # the chance of an error is u^4
        found = acceptance(-u[:500], right[:500], 0.1, 0.1)
        most = -found.threshold
        broken += found.accepted > 0 and most**4 / 5 > 0.1  # its mean over u < most
        coverage.append(float((u[500:] <= most).double().mean()))
    assert broken <= 10 and 0.6 < sum(coverage) / 100 < 0.84  # at best 0.5 ** 0.25


def test_the_search_leaves_out_numbers_of_answers_that_can_prove_nothing():
    right = (torch.arange(600) < 270) | (
        torch.arange(600) % 2 == 0
    )  # of the first 300, 15 are wrong; 150 are too few for a risk of 2 %
    found = acceptance(torch.linspace(1, 0, 600), right, 0.02, 0.1)
    assert 228 <= found.accepted <= 272 and found.bound <= 0.02
