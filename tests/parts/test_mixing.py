"""Pairs of samples and rankings of confidences by hand, against slow loops and finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from sparsify.errors import TrainingError
from sparsify.parts.mixing import (
    MixedTarget,
    Mixing,
    Pairing,
    Ranking,
    margin_ranking,
    ndcg_ranking,
    own_target,
    paired,
    weighed,
)

LOGITS = torch.tensor([[2, 1, 0.1], [0.5, 2.5, -0.5], [1, 1.2, 0.8], [-1, 0, 3]], dtype=torch.float64)
MIXED = torch.tensor([[1, 1.5, 0], [2, 0, 0], [0, 0, 1.0], [0.5, 0, 2.5]], dtype=torch.float64)
LABELS = torch.tensor([0, 0, 2, 2])
PAIRING = Pairing(0.75, torch.tensor([1, 2, 3, 0]))
"""The partners have labels 0, 2, 2, 0: the second and the fourth differ."""


def test_samples_and_targets_of_a_pairing_by_hand():
    x = torch.tensor([[0.0, 4.0], [8.0, 0.0], [0.0, 0.0], [4.0, 4.0]])
    expected = torch.tensor([[2.0, 3.0], [6.0, 0.0], [1.0, 1.0], [3.0, 4.0]])
    assert torch.equal(PAIRING.combined(x), expected)
    both = PAIRING.combined_inputs({"a": x, "b": (2 * x,)})
    assert torch.equal(both["a"], expected) and torch.equal(both["b"][0], 2 * expected)
    replaced, kept = (MixedTarget(LABELS, (PAIRING,), flag) for flag in (True, False))
    sums = [float(weighed(lambda y: y.double().sum(), target)) for target in (LABELS, replaced, kept)]
    assert sums == [4.0, 4.0, 4.0]
    first = [float(weighed(lambda y: float(y[1]), target)) for target in (LABELS, replaced, kept)]
    assert first == [0.0, 0.25 * 2, 0.0]
    assert all(own_target(target) is LABELS for target in (LABELS, replaced, kept))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_tokens_and_masks_are_no_numbers_to_combine(dtype):
    with pytest.raises(TrainingError, match=rf"needs floating-point inputs; found {dtype}"):
        PAIRING.combined_inputs((torch.ones(4, 3), torch.ones(4, 3).to(dtype)))


@pytest.mark.parametrize("concentration", [0.1, 0.4, 1.0, 2.0, 20.0])
def test_shares_have_the_moments_of_the_beta_distribution(concentration):
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([paired(1, concentration, generator).share for _ in range(4000)], dtype=torch.float64)
    assert float(shares.min()) >= 0.0 and float(shares.max()) <= 1.0
    variance = 1 / (4 * (2 * concentration + 1))
    assert float(shares.mean()) == pytest.approx(0.5, abs=4 * math.sqrt(variance / 4000))
    assert float(shares.var()) == pytest.approx(variance, rel=0.08)


def test_partners_are_a_random_permutation_and_the_generator_decides_all():
    mixing, cpu = Mixing(1.0, Ranking("ndcg", 0.1), 3), torch.device("cpu")
    draws = [mixing.pairings(9, torch.Generator().manual_seed(seed), cpu) for seed in (3, 3, 4)]
    for drawn in draws:
        assert len({pairing.share for pairing in drawn}) == 3
        assert all(sorted(pairing.order.tolist()) == list(range(9)) for pairing in drawn)
    same = [(a.share == b.share, torch.equal(a.order, b.order)) for a, b in zip(draws[0], draws[1], strict=True)]
    assert same == [(True, True)] * 3 and draws[0][0].share != draws[2][0].share
    assert not all(torch.equal(draws[0][0].order, other.order) for other in draws[0][1:])


def test_the_margin_of_four_samples():
    # max of z' - max of z: 1.5 - 2, 2 - 2.5, 1 - 1.2, 2.5 - 3; with margin 1: 0.5, 0.5, 0.8, 0.5, of which the second and fourth count
    differs = LABELS[PAIRING.order] != LABELS
    assert differs.tolist() == [False, True, False, True]
    assert float(margin_ranking(LOGITS, MIXED, differs, 1.0)) == pytest.approx((0.5 + 0.5) / 4)
    found = Ranking("margin", 0.1, 1.0).loss(LOGITS, [MIXED], LABELS, [PAIRING])
    assert float(found) == pytest.approx(0.25)
    assert float(Ranking("margin", 0.1, 1.0).loss(LOGITS, [MIXED, LOGITS - 0.5], LABELS, [PAIRING] * 2)) == (
        pytest.approx(0.25)
    )


def test_a_mask_keeps_its_own_sample_only():
    # A mask [N] times terms [N, 1] is the product of the means, 0.5 * 0.25, whichever sample is masked.
    logits, mixed = (
        torch.zeros(2, 2, dtype=torch.float64),
        torch.tensor([[0.5, 0.0], [-3.0, -3.0]], dtype=torch.float64),
    )
    for differs, expected in (([True, False], 0.25), ([False, True], 0.0), ([True, True], 0.25), ([False, False], 0.0)):
        assert float(margin_ranking(logits, mixed, torch.tensor(differs), 0.0)) == pytest.approx(expected)


def slow_ndcg(logits, mixed, relevance):
    """A sample at a time, in Python's numbers."""
    total = 0.0
    for i in range(len(logits)):
        pairs = [(1.0, float(logits[i].softmax(0).max()))]
        pairs += [(float(relevance[j, i]), float(z[i].softmax(0).max())) for j, z in enumerate(mixed)]
        pairs.sort(key=lambda pair: -pair[0])
        found = sum(c / math.log2(rank + 1) for rank, (_, c) in enumerate(pairs, 1))
        ideal = sum(r / math.log2(rank + 1) for rank, (r, _) in enumerate(pairs, 1))
        total += min(found, ideal) / max(found, ideal)
    return 1 - total / len(logits)


def test_the_gain_of_one_sample():
    # Confidences 0.8 and 0.6 with relevance 1 and 0.7: (0.8 + 0.6 / log2 3) / (1 + 0.7 / log2 3); sure of both, the inverse counts.
    logits, mixed = torch.tensor([[math.log(4.0), 0.0]]), torch.tensor([[math.log(1.5), 0.0]])
    second = 1 / math.log2(3)
    expected = 1 - (0.8 + 0.6 * second) / (1 + 0.7 * second)
    assert float(ndcg_ranking(logits, [mixed], torch.tensor([[0.7]]))) == pytest.approx(expected, abs=1e-6)
    sure = torch.tensor([[50.0, 0.0]])
    expected = 1 - (1 + 0.7 * second) / (1 + second)
    assert float(ndcg_ranking(sure, [sure], torch.tensor([[0.7]]))) == pytest.approx(expected, abs=1e-6)
    # The order is that of relevance, not that in which combinations were made.
    other = torch.tensor([[0.0, 0.0]])
    swapped = ndcg_ranking(logits, [other, mixed], torch.tensor([[0.6], [0.9]]))
    assert float(swapped) == pytest.approx(
        float(ndcg_ranking(logits, [mixed, other], torch.tensor([[0.9], [0.6]]))), abs=1e-7
    )


@pytest.mark.parametrize("combinations", [1, 3, 5])
def test_the_gain_is_that_of_a_slow_loop(combinations):
    generator = torch.Generator().manual_seed(combinations)
    logits, labels = torch.randn(7, 4, generator=generator, dtype=torch.float64) * 2, torch.arange(7) % 3
    mixed = [torch.randn(7, 4, generator=generator, dtype=torch.float64) for _ in range(combinations)]
    pairings = Mixing(1.0, Ranking("ndcg", 0.1), combinations).pairings(7, generator, torch.device("cpu"))
    relevance = torch.tensor(
        [[1.0 if labels[i] == labels[p.order[i]] else max(p.share, 1 - p.share) for i in range(7)] for p in pairings],
        dtype=torch.float64,
    )
    found = Ranking("ndcg", 0.1).loss(logits, mixed, labels, pairings)
    assert float(found) == pytest.approx(slow_ndcg(logits, mixed, relevance), abs=1e-12)
    values = [value.requires_grad_() for value in (logits, *mixed)]
    assert torch.autograd.gradcheck(lambda z, *zs: Ranking("ndcg", 0.1).loss(z, zs, labels, pairings), values)
