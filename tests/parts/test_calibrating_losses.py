"""Losses that calibrate against numbers worked by hand, slow loops and finite differences; ties, few classes, one sample and extremes."""

from __future__ import annotations

import math

import pytest
import torch

from sparsify.errors import TrainingError
from sparsify.parts import calibrating_losses as losses

LOGITS = torch.tensor([[2, 1, 0.1], [0.5, 2.5, -0.5], [1, 1.2, 0.8], [-1, 0, 3]], dtype=torch.float64)
LABELS = torch.tensor([0, 0, 2, 2])
CE = 0.991165
LOSSES = {
    "label smoothing": (lambda z, y: losses.label_smoothing(z, y, 0.1), 1.060332),
    "maxsup": (lambda z, y: losses.maxsup(z, y, 0.1), 1.120332),
    "focal": (lambda z, y: losses.focal(z, y, gamma=3.0), 0.509126),
    "focal, FLSD-53": (lambda z, y: losses.focal(z, y, gamma=3.0, hard_gamma=5.0), 0.427931),
    "dual focal": (lambda z, y: losses.dual_focal(z, y, gamma=5.0), 0.448334),
    "mbls": (lambda z, y: losses.mbls(z, y, weight=0.1, margin=1.0), 1.065332),
    "acls": (lambda z, y: losses.acls(z, y, weight=0.1, margin=1.0), 1.196928),
    # P of the four samples: 0.9^2, 2^2, 0, 3^2; their mean is 3.4525, that of Q is 2.35125, and 3.4525 + 0.1 * 2.35125 = 3.687625.
    "acls, relative": (lambda z, y: losses.acls(z, y, weight=0.1, margin=1.0, relative=True), CE + 0.3687625),
    "mmce": (lambda z, y: losses.mmce(z, y, weight=1.0), CE + 0.199151),
    "mmce, squared": (lambda z, y: losses.mmce(z, y, weight=1.0, squared=True), CE + 0.039661),
    # Two samples are right, with r 0.659001 and 0.936240, two wrong, with 0.843795 and 0.401760. With the kernel, the mean over pairs of
    # right ones of (1 - r)(1 - r') is 0.035522, that over wrong ones of r r' 0.274486, and that over both kinds of (1 - r) r' 0.075682.
    # MMCE is the root of 0.035522 + 0.274486 - 2 * 0.075682.
    "mmce, weighted": (lambda z, y: losses.mmce(z, y, weight=1.0, weighted=True), CE + 0.398302),
    # Lengths 2.238303, 2.598076, 1.754993, 3.162278; -ln p_y of z / (half the length) is 0.465185, 1.812515, 1.343775, 0.206718.
    "logit norm": (lambda z, y: losses.logit_norm(z, y, temperature=0.5), 0.957048),
}
NOTHING = {
    "label smoothing": lambda z, y: losses.label_smoothing(z, y, 0.0),
    "maxsup": lambda z, y: losses.maxsup(z, y, 0.0),
    "focal": lambda z, y: losses.focal(z, y, gamma=0.0),
    "focal, hard": lambda z, y: losses.focal(z, y, gamma=0.0, hard_gamma=0.0),
    "dual focal": lambda z, y: losses.dual_focal(z, y, gamma=0.0),
    "mbls": lambda z, y: losses.mbls(z, y, weight=0.0, margin=1.0),
    "acls": lambda z, y: losses.acls(z, y, weight=0.0, margin=1.0),
    "mmce": lambda z, y: losses.mmce(z, y, weight=0.0),
    "mmce, weighted": lambda z, y: losses.mmce(z, y, weight=0.0, weighted=True),
}


def softmax(row):
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    return [power / sum(powers) for power in powers]


def slow(name, logits, labels):
    """A loss a sample and a class at a time, in Python's numbers."""
    rows, count = logits.tolist(), len(labels)
    total, calibration = 0.0, []
    for row, label in zip(rows, labels.tolist(), strict=True):
        p, top = softmax(row), max(row)
        nll = -math.log(p[label])
        if name == "label smoothing":
            total += sum(-(0.9 * (k == label) + 0.1 / len(row)) * math.log(p[k]) for k in range(len(row)))
        elif name == "maxsup":
            total += nll + 0.1 * (top - sum(row) / len(row))
        elif name.startswith("focal"):
            total += (1 - p[label]) ** (5 if "FLSD" in name and p[label] < 0.2 else 3) * nll
        elif name == "dual focal":
            total += (1 - p[label] + max([value for value in p if value < p[label]], default=0.0)) ** 5 * nll
        elif name == "mbls":
            total += nll + 0.1 * sum(max(0.0, top - value - 1) for value in row) / len(row)
        elif name.startswith("acls"):
            high = max(0.0, top - (min(row) if "relative" in name else 0.0) - 1) ** 2 * row.count(top)
            low = sum(max(0.0, top - value - 1) ** 2 for value in row if value != top)
            total += nll + 0.1 * (high + 0.1 * low / max(len(row) - 1, 1))
        elif name == "logit norm":
            length = math.sqrt(sum(value**2 for value in row)) + 1e-7
            total += -math.log(softmax([value / (0.5 * length) for value in row])[label])
        else:
            total += nll
            calibration.append((float(p.index(max(p)) == label) - max(p), max(p)))
    if "weighted" in name:
        right = sum(a >= 0 for a, _ in calibration) / count
        calibration = [(a / (right if a >= 0 else 1 - right), r) for a, r in calibration]
    pairs = [(a, b, math.exp(-abs(r - s) / 0.4)) for a, r in calibration for b, s in calibration]
    square = sum(a * b * k for a, b, k in pairs) / count**2
    return total / count + (square if "squared" in name else math.sqrt(square))


def drawn(samples, classes, scale=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(samples + classes)
    logits = scale * torch.randn(samples, classes, generator=generator, dtype=dtype)
    return logits, torch.randint(classes, (samples,), generator=generator)


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_four_samples(name):
    compute, expected = LOSSES[name]
    assert float(compute(LOGITS, LABELS)) == pytest.approx(expected, abs=2e-6)
    assert slow(name, LOGITS, LABELS) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(("samples", "classes"), [(7, 5), (1, 3), (6, 2), (1, 2), (3, 1), (1, 1)])
@pytest.mark.parametrize("name", LOSSES)
def test_it_is_that_of_a_slow_loop_for_few_and_many(name, samples, classes):
    logits, labels = drawn(samples, classes)
    logits.requires_grad_()
    loss = LOSSES[name][0](logits, labels)
    assert float(loss.detach()) == pytest.approx(slow(name, logits.detach(), labels), abs=1e-9)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("name", [name for name in LOSSES if not name.startswith("acls")])
def test_the_gradient_is_that_of_finite_differences(name):
    for samples, classes in ((5, 4), (6, 2), (1, 3)):
        logits, labels = drawn(samples, classes)
        assert torch.autograd.gradcheck(lambda z, y=labels: LOSSES[name][0](z, y), (logits.requires_grad_(),))


@pytest.mark.parametrize("name", ["acls", "acls, relative"])
def test_no_gradient_of_acls_flows_through_the_highest_logit_where_others_are_compared_with_it(name):
    logits, labels = drawn(5, 4)
    tops = logits.amax(1, keepdim=True)
    others = tops != logits

    def fixed(z):
        low = ((tops - z - 1).relu().square() * others).sum() / (5 * 3)
        high = z.amax(1) - (z.amin(1) if "relative" in name else 0.0)
        return losses.cross_entropy(z, labels) + 0.1 * ((high - 1).relu().square().mean() + 0.1 * low)

    logits.requires_grad_()
    found, expected = (torch.autograd.grad(f(logits), logits)[0] for f in (lambda z: LOSSES[name][0](z, labels), fixed))
    assert torch.allclose(found, expected, atol=1e-12)
    assert torch.autograd.gradcheck(fixed, (logits,))


@pytest.mark.parametrize("name", NOTHING)
def test_without_its_term_it_is_cross_entropy_bit_for_bit(name):
    logits, labels = drawn(64, 11, dtype=torch.float32)
    assert torch.equal(NOTHING[name](logits, labels), torch.nn.functional.cross_entropy(logits, labels))


def test_smoothing_adds_how_far_the_label_is_above_the_mean():
    logits, labels = drawn(20, 6)
    above = (logits.gather(1, labels[:, None]).squeeze(1) - logits.mean(1)).mean()
    expected = losses.cross_entropy(logits, labels) + 0.3 * above
    assert float(losses.label_smoothing(logits, labels, 0.3)) == pytest.approx(float(expected))


def test_the_next_lower_probabilities_of_four_samples():
    # (1 - p_y + p_j)^1 nll with p_j by hand, 0 where the label is the lowest class
    p, below = LOGITS.softmax(1), torch.tensor([0.242433, 0.042010, 0.0, 0.046613], dtype=torch.float64)
    own = p[torch.arange(4), LABELS]
    expected = ((1 - own + below) * -own.log()).mean()
    assert float(losses.dual_focal(LOGITS, LABELS, gamma=1.0)) == pytest.approx(float(expected), abs=1e-6)


def test_a_class_as_probable_as_the_label_is_not_below_it():
    logits, label = torch.zeros(1, 3, dtype=torch.float64), torch.tensor([1])
    expected = (2 / 3) ** 5 * math.log(3)
    assert float(losses.dual_focal(logits, label, gamma=5.0)) == pytest.approx(expected)


def test_classes_that_share_the_highest_logit_are_all_the_highest():
    logits, label = torch.tensor([[3.0, 3.0, 0.0]], dtype=torch.float64), torch.tensor([0])
    # P = 2 * (3 - 1)^2 = 8 and Q = (3 - 0 - 1)^2 / 2 = 2
    expected = float(losses.cross_entropy(logits, label)) + 0.1 * (8 + 0.1 * 2)
    assert float(losses.acls(logits, label, weight=0.1, margin=1.0)) == pytest.approx(expected)


@pytest.mark.parametrize("name", LOSSES)
def test_ties_have_a_finite_gradient(name):
    logits = torch.tensor([[1.0, 1.0, -2.0], [0.0, 0.0, 0.0], [3.0, 3.0, 3.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(LOSSES[name][0](logits, torch.tensor([0, 1, 2])), logits)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("gamma", [0.3, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("name", ["focal", "dual_focal"])
def test_a_sure_and_a_lost_label_have_a_finite_loss_and_gradient(name, gamma):
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0], [17.0, 0.0]], requires_grad=True)
    loss = getattr(losses, name)(logits, torch.tensor([0, 0, 0]), gamma=gamma)
    assert float(loss.detach()) == pytest.approx(200 / 3, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.allclose(gradient[1], torch.tensor([-1 / 3, 1 / 3])) and bool(gradient.isfinite().all())


def test_a_calibrated_batch_has_a_finite_gradient():
    logits = torch.tensor([[300.0, 0.0], [0.0, 300.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(losses.mmce(logits, torch.tensor([0, 1]), weight=2.0), logits)
    assert not gradient.any()


@pytest.mark.parametrize("name", LOSSES)
def test_an_impossible_class_has_probability_0_or_an_infinite_penalty(name):
    logits, labels = torch.tensor([[1.0, 2.0, -torch.inf], [2.0, 2.5, 0.0]], dtype=torch.float64), torch.tensor([0, 1])
    loss = float(LOSSES[name][0](logits, labels))
    compares = name.startswith(("label smoothing", "maxsup", "mbls", "acls"))
    assert loss == math.inf if compares else math.isfinite(loss)
    if not compares:
        low = logits.masked_fill(logits == -torch.inf, -1e9)
        assert name == "logit norm" or loss == pytest.approx(float(LOSSES[name][0](low, labels)))
        logits.requires_grad_()
        (gradient,) = torch.autograd.grad(LOSSES[name][0](logits, labels), logits)
        assert bool(gradient.isfinite().all()) and gradient[0, 2] == 0


def test_the_length_of_logits_does_not_enter_a_normalised_loss():
    found = [float(losses.logit_norm(scale * LOGITS, LABELS, temperature=0.04)) for scale in (1.0, 1000.0)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    zero = torch.zeros(2, 4, requires_grad=True)
    loss = losses.logit_norm(zero, torch.tensor([0, 3]), temperature=0.04)
    assert float(loss.detach()) == pytest.approx(math.log(4))
    assert bool(torch.autograd.grad(loss, zero)[0].isfinite().all())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (torch.nn.functional.one_hot(LABELS, 3), "int64 \\[4, 3\\]"),
        (torch.full((4, 3), 1 / 3), "float32 \\[4, 3\\]"),
        (torch.ones(4), "float32 \\[4\\]"),
        (torch.ones(4, dtype=torch.bool), "bool \\[4\\]"),
        (LABELS[:3], "int64 \\[3\\]"),
    ],
)
def test_a_target_that_is_not_one_class_per_sample_is_refused(name, labels, found):
    with pytest.raises(TrainingError, match=f"class numbers.*found logits \\[4, 3\\] and a target {found}"):
        LOSSES[name][0](LOGITS, labels)


@pytest.mark.parametrize("name", LOSSES)
def test_logits_of_one_answer_are_refused(name):
    with pytest.raises(TrainingError, match=r"logits \[N, K\].*found logits \[4\]"):
        LOSSES[name][0](LOGITS[:, 0], LABELS)
