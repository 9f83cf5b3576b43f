"""Isotonic regression and histograms of frequencies: by hand, against scikit-learn and against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression

from sparsify.parts.frequencies import (
    Blocks,
    between_blocks,
    between_centres,
    histogram_blocks,
    isotonic_blocks,
    thinned,
)
from tests.cases import held_out_logits


def drawn(n, seed=0, digits=3):
    """Probabilities with ties, and answers that are right less often than they say."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(n, generator=generator).double().mul(10**digits).round() / 10**digits
    return p, torch.rand(n, generator=generator).double() < p**2


def block_of(blocks, p):
    """The block of each probability."""
    return torch.searchsorted(blocks.last, p.contiguous())


def test_pooling_by_hand():
    p = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], dtype=torch.float64)
    right = torch.tensor([False, True, False, False, True, True])
    blocks = isotonic_blocks(p, right)  # 0 | 1 0 0 become 1/3 | 1 1
    assert blocks.frequency.tolist() == pytest.approx([0, 1 / 3, 1])
    assert blocks.count.tolist() == [1, 3, 2]
    assert blocks.first.tolist() == [0.1, 0.2, 0.5] and blocks.last.tolist() == [0.1, 0.4, 0.6]
    assert blocks.centre.tolist() == pytest.approx([0.1, 0.3, 0.55])
    curve = between_centres(blocks)
    found = curve(torch.tensor([0.0, 0.1, 0.2, 0.3, 0.425, 0.6, 1.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([0, 0, 1 / 6, 1 / 3, 2 / 3, 1, 1])


def test_bins_by_hand():
    p = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]).double()
    blocks = histogram_blocks(p, torch.tensor([True, True, False, False, False, True]), 3)
    assert blocks.count.tolist() == [2, 2, 2] and blocks.frequency.tolist() == [1, 0, 0.5]
    found = between_blocks(blocks)(torch.tensor([0.0, 0.2, 0.25, 0.3, 0.4, 0.45, 0.9]).double())
    assert found.tolist() == pytest.approx([1, 1, 0.5, 0, 0, 0.25, 0.5])


@pytest.mark.parametrize(("n", "digits"), [(1, 3), (2, 3), (30, 1), (500, 2), (3000, 3)])
def test_isotonic_regression_is_that_of_scikit_learn(n, digits):
    p, right = drawn(n, digits=digits)
    blocks = isotonic_blocks(p, right)
    oracle = IsotonicRegression(out_of_bounds="clip").fit(p.numpy(), right.double().numpy())
    np.testing.assert_allclose(blocks.frequency[block_of(blocks, p)].numpy(), oracle.predict(p.numpy()), atol=1e-12)
    grid = torch.linspace(0, 1, 777).double()
    np.testing.assert_allclose(between_blocks(blocks)(grid).numpy(), oracle.predict(grid.numpy()), atol=1e-9)
    assert bool((blocks.frequency.diff() > 0).all()) and int(blocks.count.sum()) == n


@pytest.mark.parametrize("label", [0, 3, 8])
def test_isotonic_regression_of_real_probabilities_is_that_of_scikit_learn(label):
    logits, labels = held_out_logits()
    p, right = logits.softmax(1)[:, label], labels == label
    blocks = isotonic_blocks(p, right)
    oracle = IsotonicRegression(out_of_bounds="clip").fit(p.numpy(), right.double().numpy())
    np.testing.assert_allclose(blocks.frequency[block_of(blocks, p)].numpy(), oracle.predict(p.numpy()), atol=1e-12)


@pytest.mark.parametrize(("n", "bins"), [(150, 15), (100, 7), (20, 15), (5, 15), (1, 15)])
def test_bins_have_equal_mass(n, bins):
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(n, generator=generator).double()
    right = torch.rand(n, generator=generator).double() < p
    blocks = histogram_blocks(p, right, bins)
    assert len(blocks.count) == min(n, bins) and int(blocks.count.sum()) == n
    assert float(blocks.count.max() - blocks.count.min()) <= 1
    for number in range(len(blocks.count)):
        inside = (p >= blocks.first[number]) & (p <= blocks.last[number])
        assert int(inside.sum()) == int(blocks.count[number])
        assert float(right[inside].double().mean()) == pytest.approx(float(blocks.frequency[number]))
        assert float(p[inside].mean()) == pytest.approx(float(blocks.centre[number]))


def test_samples_of_equal_probability_stay_together():
    p = torch.tensor([0.0] * 90 + [0.5] * 6 + [1.0] * 4).double()
    blocks = histogram_blocks(p, p > 0.4, 15)
    assert blocks.first.tolist() == blocks.last.tolist() == [0.0, 0.5, 1.0]
    assert blocks.count.tolist() == [90, 6, 4]
    assert isotonic_blocks(torch.full((9,), 0.3), torch.arange(9) < 3).frequency.tolist() == pytest.approx([1 / 3])


def test_joined_blocks_keep_frequencies_of_their_samples_and_lose_little():
    p, right = drawn(3000)
    blocks = isotonic_blocks(p, right)
    assert len(blocks.count) > 8
    few = thinned(blocks, 8)
    assert len(few.count) == 8 and bool((few.frequency.diff() > 0).all())
    for number in range(8):
        inside = (p >= few.first[number]) & (p <= few.last[number])
        assert int(inside.sum()) == int(few.count[number])
        assert float(right[inside].double().mean()) == pytest.approx(float(few.frequency[number]))
        assert float(p[inside].mean()) == pytest.approx(float(few.centre[number]))

    def error(found: Blocks) -> float:
        return float(((found.frequency[block_of(found, p)] - right.double()) ** 2).mean())

    assert error(blocks) <= error(few) < error(blocks) + 0.002
    assert thinned(blocks, 64 + len(blocks.count)) is blocks


def test_ramps_are_no_steeper_than_single_precision_allows():
    p = torch.tensor([1e-42, 1e-41, 0.5, 0.5 + 1e-9]).double()
    blocks = isotonic_blocks(p, torch.tensor([False, True, True, True]))
    curve = between_blocks(blocks)
    assert float(curve.rate.max()) <= 1.001e12
    close = Blocks(
        *(torch.tensor(value).double() for value in ([0.5, 0.6], [0.5, 0.6], [0.5, 0.5 + 1e-9], [0.1, 0.9], [1, 1]))
    )
    assert 1 / float(between_centres(close).rate) == pytest.approx(2e-6)
