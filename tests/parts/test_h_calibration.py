"""h-calibration: the map is continuous and rising, the loss is that of a slow oracle, and the fit stops early and keeps its bounds."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from sparsify.parts import h_calibration
from sparsify.parts.calibrators import NotIdentifiableError, fit_temperature
from sparsify.parts.h_calibration import averaged, clustered, fit_slopes, h_loss, piecewise
from tests.cases import held_out_logits


def clipped(u, slopes):
    """The map as it is defined, term by term."""
    width = 100 / len(slopes)
    return sum(abs(float(c)) * (u - s * width).clamp(0, width) for s, c in enumerate(slopes))


def released(u, slopes):
    """The map as the released code computes it: from the value at the end of a segment's predecessor, V, with u - V in place of u - b."""
    width = 100 / len(slopes)
    ends = [0.0, *(float(slopes[: s + 1].abs().sum()) * width for s in range(len(slopes)))]
    segment = (u / width).long().clamp_max(len(slopes) - 1)
    before = torch.tensor(ends, dtype=u.dtype)[segment]
    return before + slopes.abs()[segment] * (u - before)


def test_the_map_is_the_sum_of_its_clipped_terms():
    generator = torch.Generator().manual_seed(0)
    u = 130 * torch.rand(500, generator=generator, dtype=torch.float64)
    for count in (1, 10, 50):
        slopes = torch.randn(count, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(piecewise(u, slopes), clipped(u, slopes))
    by_hand = piecewise(torch.tensor([0.0, 24.0, 25.0, 75.0, 200.0]), torch.tensor([2.0, 1.0, -1.0, 3.0]))
    torch.testing.assert_close(by_hand, torch.tensor([0.0, 48.0, 50.0, 100.0, 175.0]))


def test_the_map_does_not_jump_where_slopes_differ_as_the_released_one_does():
    generator = torch.Generator().manual_seed(0)
    slopes = 0.1 + torch.rand(10, generator=generator, dtype=torch.float64)
    u = torch.linspace(0, 99.999, 100_000, dtype=torch.float64)
    step, most = float(u[1]), float(slopes.max())
    rises = piecewise(u, slopes).diff()
    assert float(rises.min()) > 0 and float(rises.max()) <= most * step * (1 + 1e-6)
    jumps = released(u, slopes).diff()
    assert float(jumps.abs().max()) > 0.5 > 100 * most * step and float(jumps.min()) < 0
    one = torch.tensor([0.4], dtype=torch.float64)
    torch.testing.assert_close(released(u, one), piecewise(u, one))  # alike for one segment alone


def test_clusters_are_those_of_lloyd_and_ascend():
    values = torch.tensor([0.0, 0.01, 0.02, 0.5, 0.52, 0.98, 1.0], dtype=torch.float64)
    assert clustered(values, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert clustered(values[:1]).unique().numel() == 1 and len(clustered(torch.zeros(20, dtype=torch.float64))) == 20
    many = held_out_logits(300)[0].softmax(1).flatten().sort().values
    groups = clustered(many, 15)
    assert bool((groups.diff() >= 0).all())
    centres = torch.stack(
        [many[groups == g].mean() if bool((groups == g).any()) else torch.tensor(torch.inf).double() for g in range(15)]
    )
    nearest = (many[:, None] - centres).abs().argmin(1)
    assert float((nearest != groups).double().mean()) < 0.01  # Lloyd's iterations are few, and nearly at their end


def oracle(p, y, window, clusters):
    losses = []
    for e in range(p.shape[1]):
        pairs = sorted(
            (float(p[i, k]), i * p.shape[1] + k, float(p[i, k]) - (int(y[i]) == k))
            for i in range(len(p)) if int(y[i]) != e for k in range(p.shape[1])
        )  # fmt: skip
        errors = [error for *_, error in pairs]
        reach = window // 2
        means = [abs(sum(errors[max(0, j - reach) : j + reach + 1])) / window for j in range(len(errors))]
        groups = clustered(torch.tensor([value for value, *_ in pairs], dtype=torch.float64), clusters)
        inside = [
            np.mean([m for m, g in zip(means, groups.tolist(), strict=True) if g == one])
            for one in set(groups.tolist())
        ]
        losses.append(np.mean(inside))
    return 1e5 * np.mean(losses)


def test_the_loss_is_that_of_loops_over_classes_and_neighbours():
    z, y = held_out_logits(60)
    p = z.softmax(1)
    assert float(h_loss(p, y)) == pytest.approx(oracle(p, y, 201, 15), rel=1e-9)
    torch.testing.assert_close(averaged(torch.tensor([1.0, 2.0, 3.0, 4.0]), 3), torch.tensor([3.0, 6.0, 9.0, 7.0]) / 3)


def test_a_class_whose_samples_are_all_of_it_is_left_out():
    p = torch.full((5, 2), 0.5, dtype=torch.float64)
    assert float(h_loss(p, torch.zeros(5).long())) == float(h_loss(p, torch.zeros(5).long(), [1]))
    assert float(h_loss(p, torch.zeros(5).long(), [0])) == 0


def test_the_gradient_is_that_of_finite_differences():
    z, y = held_out_logits(40)
    logs = torch.zeros(10, dtype=torch.float64)

    def loss(x):
        return h_loss((-piecewise(-z.log_softmax(1), x.exp())).softmax(1), y)

    (found,) = torch.autograd.grad(loss(logs.requires_grad_()), logs)
    moved = torch.zeros(10, dtype=torch.float64).index_fill(0, torch.tensor([0]), 1e-6)
    with torch.no_grad():
        slope = (loss(logs + moved) - loss(logs - moved)) / 2e-6
    assert float(found[0]) == pytest.approx(float(slope), rel=1e-3)


def test_a_fit_is_no_worse_than_a_temperature_on_the_samples_apart_and_repeats():
    z, y = held_out_logits(800)
    first, second = fit_slopes(z, y), fit_slopes(z, y)
    assert torch.equal(first.slopes, second.slopes) and first.segments in h_calibration.SEGMENTS
    assert len(first.slopes) == 50 and float(first.slopes.min()) > 0
    assert first.nll_after <= first.nll_before
    if not first.steps:
        torch.testing.assert_close(1 / first.slopes[0], torch.tensor(fit_temperature(z, y)).double())


def test_a_step_that_is_worse_on_the_samples_apart_is_not_taken(monkeypatch):
    z, y = held_out_logits(300)
    monkeypatch.setattr(h_calibration, "RATE", 3.0)  # slopes change 20-fold
    found = fit_slopes(z, y)
    assert found.steps == 0 and found.nll_after == found.nll_before
    torch.testing.assert_close(found.slopes, torch.full((50,), 1 / fit_temperature(z, y)).double())


def test_a_thousand_classes_take_bounded_steps(monkeypatch):
    seen = []
    loss = h_calibration.h_loss

    def noted(p, labels, classes=None):
        seen.append((len(p), len(classes)))
        return loss(p, labels, classes)

    monkeypatch.setattr(h_calibration, "h_loss", noted)
    monkeypatch.setattr(h_calibration, "STEPS", 5)
    z, y = held_out_logits(300)
    wide = torch.cat([2 * z, z.min() - 5 + z.repeat(1, 99) / 5], 1)
    start = time.perf_counter()
    fit_slopes(wide, y)
    assert {*seen} == {(131, 2)} and time.perf_counter() - start < 60


def test_samples_that_determine_no_temperature_are_refused():
    with pytest.raises(NotIdentifiableError, match="classify all held-out data correctly"):
        fit_slopes(torch.eye(4).double() * 9, torch.arange(4))
