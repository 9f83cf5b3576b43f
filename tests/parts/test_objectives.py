"""The unknown-aware loss, its gradient and its tuning against numbers worked by hand, slow loops and finite differences; other
objectives."""

from __future__ import annotations

import math

import pytest
import torch

from sparsify.parts.objectives import Scheduled, Stateless, UnknownAware, unknown_aware
from sparsify.parts.schedules import linear

LOGITS = torch.tensor([[2, 1, 0.1, -1], [0.5, 2.5, -0.5, 0], [1, 1.2, 0.8, 0.9], [-1, 0, 3, 0.5]], dtype=torch.float64)
LABELS = torch.tensor([0, 0, 2, 2])
H = [0.449313, 2.236816, 1.572442, 0.139925]
U = [0.031767, 0.064776, 0.229365, 0.071367]


def slow(logits, labels, alpha):
    """The loss a sample and a class at a time."""
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        whole = sum(math.exp(value) for value in row)
        loss, unknown = -math.log(math.exp(row[label]) / whole), math.exp(row[-1]) / whole
        wrong = max(range(len(row)), key=row.__getitem__) != label
        total += (1 + alpha / (1 + alpha * unknown) if wrong else 1) * loss
    return total / len(labels)


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, 1.099624), (0.01, 1.109134), (0.5, 1.546787), (1.0, 1.944575)])
def test_the_loss_of_four_samples(alpha, expected):
    assert float(unknown_aware(LOGITS, LABELS, alpha)) == pytest.approx(expected, abs=1e-6)
    assert slow(LOGITS, LABELS, alpha) == pytest.approx(expected, abs=1e-6)


def test_the_second_and_third_sample_are_wrong_and_weigh_more():
    weights = [float(unknown_aware(LOGITS[i : i + 1], LABELS[i : i + 1], 1.0)) / H[i] for i in range(4)]
    assert weights == pytest.approx([1, 1.939164, 1.813428, 1], abs=2e-6)
    assert [1 + 1 / (1 + u) for u in U[1:3]] == pytest.approx(weights[1:3], abs=2e-6)


def test_without_alpha_it_is_cross_entropy_bit_for_bit():
    logits = torch.randn(64, 11, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(10, (64,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(unknown_aware(logits, labels, 0.0), torch.nn.functional.cross_entropy(logits, labels))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 20.0])
def test_the_gradient_is_that_of_finite_differences_and_of_the_formula(alpha):
    logits = LOGITS.clone().requires_grad_()
    loss = unknown_aware(logits, LABELS, alpha)
    (gradient,) = torch.autograd.grad(loss, logits)
    for i in range(4):
        for k in range(4):
            step = torch.zeros_like(LOGITS)
            step[i, k] = 1e-6
            slope = (slow(LOGITS + step, LABELS, alpha) - slow(LOGITS - step, LABELS, alpha)) / 2e-6
            assert float(gradient[i, k]) == pytest.approx(slope, abs=1e-8)
    for i, (h, u) in enumerate(
        zip(H, U, strict=True)
    ):  # d/dz of the unknown's logit: u (w - e h alpha^2 (1 - u) / (1 + alpha u)^2)
        wrong = i in (1, 2)
        weight = 1 + alpha / (1 + alpha * u) if wrong else 1
        formula = u * (weight - wrong * h * alpha**2 * (1 - u) / (1 + alpha * u) ** 2) / 4
        assert float(gradient[i, -1]) == pytest.approx(formula, abs=1e-5)


def test_a_mistake_pushes_the_unknown_up_only_beyond_a_loss():
    for h, pushed in (
        (1.9, False),
        (2.1, True),
    ):  # at u -> 0 and alpha 1 the threshold is h > (1 + alpha) / alpha^2 = 2
        logits = torch.tensor([[0.0, math.log(math.exp(h) - 1), -12.0]], dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(unknown_aware(logits, torch.tensor([0]), 1.0), logits)
        assert bool(gradient[0, -1] < 0) == pushed


def test_alpha_by_hand():
    tuned = UnknownAware(total_steps=7, warmup=2, every=2, final=1.0, divisor=4.0, smoothing=0.25)
    # one sample, two classes and the unknown, all logits equal: u = 1/3, h = ln 3, (1 - u) h = 0.732408
    even, label = torch.zeros(1, 3, dtype=torch.float64), torch.tensor([0])
    state = tuned.observe(even, label, tuned.init(), 1)
    assert state["running"] == pytest.approx(0.732408, abs=1e-6) and state["unknown"] == pytest.approx(1 / 3)
    assert state["alpha"] == 0.0, "cross-entropy while warming up"
    # logits (ln 2, 0, 0): p = (1/2, 1/4, 1/4), (1 - 1/4) ln 2 = 0.519860; S = 0.732408 + 0.25 (0.519860 - 0.732408) = 0.679271
    sure = torch.tensor([[math.log(2), 0, 0]], dtype=torch.float64)
    state = tuned.observe(sure, label, state, 2)
    assert state["running"] == pytest.approx(0.679271, abs=1e-6) and state["alpha"] == 0.0
    assert state["unknown"] == pytest.approx(1 / 3 + 0.25 * (1 / 4 - 1 / 3))
    # step 3 opens the first of three intervals (3-4, 5-6, 7): S = 0.639418, alpha = S / 4 = 0.159855
    alphas = []
    for step in range(3, 8):
        state = tuned.observe(sure, label, state, step)
        alphas.append(state["alpha"])
    first = (0.679271 + 0.25 * (0.519860 - 0.679271)) / 4
    assert first == pytest.approx(0.159855, abs=1e-6)
    middle = first + (1 - first) / 2
    assert alphas == pytest.approx([first, first, middle, middle, 1.0], abs=1e-6)
    assert tuned.readings(state) == {"alpha": 1.0, "unknown_mass": state["unknown"]}


def test_alpha_against_the_published_order_of_things():
    """Epochs, as the released class counts them: its increments, added one an epoch, end at the same alphas."""
    per_epoch, epochs, warm = 3, 9, 2
    tuned = UnknownAware(total_steps=27, warmup=warm * per_epoch, every=per_epoch, final=0.7, divisor=64.0)
    draw = torch.Generator().manual_seed(0)
    running, alpha, increment, state, last = None, None, 0.0, tuned.init(), 0
    for step in range(1, 28):
        epoch = (step - 1) // per_epoch + 1
        logits = torch.randn(8, 5, generator=draw, dtype=torch.float64)
        labels = torch.randint(4, (8,), generator=draw)
        p = logits.softmax(1)
        s = float(((1 - p[:, 4]) * -p[torch.arange(8), labels].log()).mean())
        running = s if running is None else 0.05 * s + 0.95 * running
        if epoch == warm + 1 and alpha is None:
            alpha, increment, last = running / 64, (0.7 - running / 64) / (epochs - epoch), epoch
        elif alpha is not None and epoch > last:
            alpha, last = alpha + increment, epoch
        state = tuned.observe(logits, labels, state, step)
        assert state["alpha"] == pytest.approx(alpha or 0.0, abs=1e-12)
        assert float(tuned.loss(logits, labels, state)) == pytest.approx(slow(logits, labels, alpha or 0.0), abs=1e-9)
    assert state["alpha"] == pytest.approx(0.7)


def test_observing_leaves_no_graph_and_changes_nothing_given():
    tuned, logits = UnknownAware(total_steps=10, warmup=1, every=1), LOGITS.clone().requires_grad_()
    state = tuned.init()
    tuned.observe(logits, LABELS, state, 1)
    assert state == tuned.init() and logits.grad is None


@pytest.mark.parametrize(("total", "warmup", "every"), [(10, 10, 1), (10, 9, 1), (10, 5, 5), (10, 40, 1)])
def test_too_short_a_run_is_refused(total, warmup, every):
    with pytest.raises(ValueError, match="alpha needs two"):
        UnknownAware(total_steps=total, warmup=warmup, every=every)


def test_an_objective_without_memory():
    objective = Stateless(lambda logits, labels: logits.sum() + labels.sum())
    state = objective.observe(LOGITS, LABELS, objective.init(), 7)
    assert state == {} == objective.readings(state)
    assert float(objective.loss(LOGITS, LABELS, state)) == pytest.approx(float(LOGITS.sum()) + 4)


def test_an_objective_whose_number_follows_a_schedule():
    objective = Scheduled(lambda logits, labels, rate: rate * logits.sum(), "rate", linear(0.0, 1.0, stop_at=4))
    state = objective.init()
    assert state == {"rate": 0.25}, "that of the first step"
    state = objective.observe(LOGITS, LABELS, state, 2)
    assert state == {"rate": 0.5} == objective.readings(state)
    assert float(objective.loss(LOGITS, LABELS, state)) == pytest.approx(float(LOGITS.sum()) / 2)
