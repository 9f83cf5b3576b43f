"""Metrics against slow loops in exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsify.figures import metrics
from tests.properties.steady import steady


@st.composite
def predictions(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities [N, K], some of them exactly 0, 1 or equal, and labels."""
    n, k, seed = draw(st.integers(1, 30)), draw(st.integers(2, 6)), draw(st.integers(0, 999))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, generator=generator) * draw(st.sampled_from([0.0, 1.0, 20.0, 1000.0]))
    return logits.double().softmax(1), torch.randint(k, (n,), generator=generator)


def width_error(pairs: list[tuple[float, bool]], bins: int) -> Fraction:
    """Sum over bins of |hits - summed confidence| / N; bins are (i/M, (i+1)/M], and 0 is in the first."""
    rows: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for confidence, hit in pairs:
        index = max(math.ceil(Fraction(confidence) * bins) - 1, 0)
        rows[min(index, bins - 1)].append((confidence, hit))
    gaps = [abs(sum(hit for _, hit in row) - sum(map(Fraction, (c for c, _ in row)))) for row in rows]
    return sum(gaps, Fraction(0)) / len(pairs)


def top(probabilities: torch.Tensor, labels: torch.Tensor) -> list[tuple[float, bool]]:
    rows = probabilities.tolist()
    return [(max(row), row.index(max(row)) == y) for row, y in zip(rows, labels.tolist(), strict=True)]


@steady
@given(predictions(), st.sampled_from([1, 2, 8, 15]))
def test_ece(data, bins):
    assert abs(metrics.ece(*data, bins=bins) - width_error(top(*data), bins)) < 1e-9


@steady
@given(predictions(), st.sampled_from([1, 4, 15]))
def test_classwise_ece(data, bins):
    p, y = data
    errors = [
        width_error([(float(row[k]), int(t) == k) for row, t in zip(p, y, strict=True)], bins)
        for k in range(p.shape[1])
    ]
    assert abs(metrics.classwise_ece(p, y, bins=bins) - sum(errors) / len(errors)) < 1e-9


@steady
@given(predictions(), st.sampled_from([1, 4, 15]))
def test_adaptive_ece(data, bins):
    pairs = sorted(top(*data), key=lambda pair: pair[0])  # stable, as the metric's sort
    sizes = [len(pairs) // bins + (i < len(pairs) % bins) for i in range(bins)]
    total, start = Fraction(0), 0
    for size in sizes:
        part = pairs[start : start + size]
        total += abs(sum(hit for _, hit in part) - sum((Fraction(c) for c, _ in part), Fraction(0)))
        start += size
    assert abs(metrics.adaptive_ece(*data, bins=bins) - total / len(pairs)) < 1e-9


@steady
@given(predictions())
def test_nll_brier_accuracy(data):
    p, y = data
    rows = list(zip(p.tolist(), y.tolist(), strict=True))
    assert math.isclose(
        metrics.nll(p, y), sum(-math.log(max(row[t], 1e-12)) for row, t in rows) / len(rows), abs_tol=1e-12
    )
    brier = sum(sum((value - (k == t)) ** 2 for k, value in enumerate(row)) for row, t in rows) / len(rows)
    assert math.isclose(metrics.brier(p, y), brier, abs_tol=1e-12) and 0 <= brier <= 2
    assert math.isclose(metrics.accuracy(p, y), sum(hit for _, hit in top(p, y)) / len(rows))


@steady
@given(predictions())
def test_class_accuracy(data):
    p, y = data
    pairs = list(zip((hit for _, hit in top(p, y)), y.tolist(), strict=True))
    for k, value in enumerate(metrics.class_accuracy(p, y)):
        hits = [hit for hit, t in pairs if t == k]
        assert value == (sum(hits) / len(hits) if hits else None)


SCORES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=25)


@steady
@given(SCORES, SCORES)
def test_auroc_counts_pairs(inside, outside):
    wins = sum((a > b) + (a == b) / 2 for a in inside for b in outside)
    found = metrics.auroc(torch.tensor(inside), torch.tensor(outside))
    assert math.isclose(found, wins / (len(inside) * len(outside)), abs_tol=1e-12)


@steady
@given(SCORES, SCORES)
def test_fpr_at_95(inside, outside):
    accepted = [t for t in inside if 100 * sum(value >= t for value in inside) >= 95 * len(inside)]
    expected = sum(value >= max(accepted) for value in outside) / len(outside)
    assert math.isclose(metrics.fpr_at_95_tpr(torch.tensor(inside), torch.tensor(outside)), expected)
