"""Metrics against slow oracles, on random predictions with ties and at the edges of bins."""

from __future__ import annotations

import math
import random

import pytest
import torch

from sparsify.parts import metrics

SEEDS = range(15)


def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities [N, K] float64, some on bin edges, and labels."""
    rng = random.Random(seed)
    n, k = rng.randint(1, 60), rng.randint(2, 6)
    generator = torch.Generator().manual_seed(seed)
    table = torch.softmax(torch.randn(n, k, generator=generator, dtype=torch.float64) * rng.choice([0.1, 1.0, 10.0]), 1)
    if seed % 3 == 0:
        table = torch.eye(k, dtype=torch.float64)[torch.randint(k, (n,), generator=generator)]
    return table, torch.randint(k, (n,), generator=generator)


@pytest.mark.parametrize("seed", SEEDS)
def test_accuracy_nll_brier_by_loops(seed):
    table, labels = drawn(seed)
    rows, y = table.tolist(), labels.tolist()
    hits = sum(row.index(max(row)) == label for row, label in zip(rows, y, strict=True))
    assert metrics.accuracy(table, labels) == pytest.approx(hits / len(y), abs=1e-12)
    brier = sum(sum((p - (i == label)) ** 2 for i, p in enumerate(row)) for row, label in zip(rows, y, strict=True))
    assert metrics.brier(table, labels) == pytest.approx(brier / len(y), abs=1e-12)
    if all(row[label] > 1e-6 for row, label in zip(rows, y, strict=True)):
        nll = -sum(math.log(row[label]) for row, label in zip(rows, y, strict=True)) / len(y)
        assert metrics.nll(table, labels) == pytest.approx(nll, abs=1e-9)
    assert math.isfinite(metrics.nll(table, labels))


@pytest.mark.parametrize("seed", SEEDS)
def test_ece_by_loops(seed):
    table, labels = drawn(seed)
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for row, label in zip(table.tolist(), labels.tolist(), strict=True):
        confidence = max(row)
        index = next((b for b in range(15) if b / 15 < confidence <= (b + 1) / 15), 0)
        bins[index].append((confidence, row.index(confidence) == label))
    total = 0.0
    for members in bins:
        if members:
            gap = sum(hit for _, hit in members) / len(members) - sum(c for c, _ in members) / len(members)
            total += abs(gap) * len(members) / len(labels)
    assert metrics.ece(table, labels) == pytest.approx(total, abs=1e-9)
    assert 0.0 <= metrics.adaptive_ece(table, labels) <= 1.0
    assert 0.0 <= metrics.classwise_ece(table, labels) <= 1.0


@pytest.mark.parametrize("seed", SEEDS)
def test_order_of_samples_does_not_matter(seed):
    table, labels = drawn(seed)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    for measure in (metrics.accuracy, metrics.nll, metrics.brier, metrics.ece, metrics.classwise_ece):
        assert measure(table[order], labels[order]) == pytest.approx(measure(table, labels), abs=1e-12)
