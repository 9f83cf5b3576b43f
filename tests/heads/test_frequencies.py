"""Isotonic and histogram heads: identity, frequencies, rows and classes without any, real digits, and integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression

from sparsify.figures import metrics
from sparsify.heads import HeldOut, Histogram, Isotonic, run
from sparsify.tasks import Classification
from tests.cases import held_out_logits

TASK, HEADS = Classification(), (Isotonic(), Histogram())
both = pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)


def probabilities(head, output, values):
    return head.apply(run, output, {name: value.to(output.dtype) for name, value in values.items()}, TASK)[0]


def fitted(head, logits, labels):
    return head.fit(HeldOut(logits, labels, TASK), head.identity(("N", logits.shape[1])))


@both
def test_before_a_fit_the_probabilities_are_those_of_the_model(head):
    logits, _ = held_out_logits(50)
    state = head.identity(("N", 10))
    torch.testing.assert_close(probabilities(head, logits, state), logits.softmax(1), rtol=0, atol=1e-11)
    torch.testing.assert_close(probabilities(head, logits.float(), state), logits.float().softmax(1))
    ruled_out = logits.index_fill(1, torch.tensor([4]), -torch.inf)
    torch.testing.assert_close(probabilities(head, ruled_out, state), ruled_out.softmax(1), rtol=0, atol=1e-11)


def test_a_histogram_of_two_classes_by_hand():
    p = torch.tensor([0.1] * 5 + [0.9] * 5).double()  # of class 1
    logits = torch.stack([torch.zeros(10).double(), p.logit()], 1)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 0, 0])
    found = probabilities(Histogram(), logits, fitted(Histogram(), logits, labels).values)
    low, high = torch.tensor([0.8 + 0.09, 0.2 + 0.01]), torch.tensor([0.4 + 0.01, 0.6 + 0.09])  # frequency + p / 10
    want = torch.stack([low / low.sum()] * 5 + [high / high.sum()] * 5).double()
    torch.testing.assert_close(found, want, rtol=0, atol=1e-6)


def test_isotonic_probabilities_are_near_those_of_scikit_learn():
    logits, labels = held_out_logits(1500)
    known, rest = slice(0, 1000), slice(1000, 1500)
    found = probabilities(Isotonic(), logits[rest], fitted(Isotonic(), logits[known], labels[known]).values)
    table = logits.softmax(1).numpy()
    columns = [
        IsotonicRegression(out_of_bounds="clip")
        .fit(table[known, k], (labels[known] == k).double().numpy())
        .predict(table[rest, k])
        for k in range(10)
    ]
    plain = torch.from_numpy(np.stack(columns, 1)) + 1e-12
    plain = plain / plain.sum(1, keepdim=True)
    assert metrics.accuracy(found, labels[rest]) == pytest.approx(metrics.accuracy(plain, labels[rest]), abs=0.02)
    assert metrics.nll(found, labels[rest]) <= metrics.nll(plain, labels[rest])
    assert float((found - plain).abs().mean()) < 0.02


@both
def test_samples_left_out_are_predicted_better(head):
    logits, labels = held_out_logits(1500)
    log = fitted(head, logits[:1000], labels[:1000])
    before, after = logits[1000:].softmax(1), probabilities(head, logits[1000:], log.values)
    assert log.note is None and float(after.min()) > 0
    torch.testing.assert_close(after.sum(1), torch.ones(500).double())
    assert metrics.nll(after, labels[1000:]) < metrics.nll(before, labels[1000:])
    assert metrics.ece(after, labels[1000:]) < metrics.ece(before, labels[1000:])
    single = probabilities(head, logits[1000:].float(), log.values)
    torch.testing.assert_close(single.double(), after, rtol=0, atol=1e-3)


@both
def test_a_class_without_samples_keeps_its_probability_and_is_named(head):
    logits, labels = held_out_logits(1000)
    log = fitted(head, logits[labels != 6], labels[labels != 6])
    assert log.note == "not fitted for 1 of 10 classes (6), which no held-out sample has"
    sure = torch.zeros(1, 10).double().index_fill(1, torch.tensor([6]), 30.0)
    assert float(probabilities(head, sure, log.values)[0, 6]) > 0.9


@both
def test_a_sample_for_which_all_frequencies_are_0_keeps_the_probabilities_of_the_model(head):
    logits, _ = held_out_logits(50)
    values = {name: torch.zeros_like(value).double() for name, value in head.identity(("N", 10)).items()}
    _, _, rate, jump = values
    values[rate][:, -1], values[jump][:, -1] = 1.0, 1e-3  # of 1,000 held-out samples
    torch.testing.assert_close(probabilities(head, logits, values), logits.softmax(1), rtol=0, atol=1e-7)


@both
def test_few_samples_are_called_rough_and_one_class_is_refused(head):
    logits, labels = held_out_logits(1000)
    log = fitted(head, logits[:20], labels[:20])
    assert log.note is not None and log.note.startswith("a rough estimate, from 20 held-out samples of 10 classes")
    two = fitted(head, logits[:200, :2], labels[:200] % 2)
    after = probabilities(head, logits[:200, :2], two.values)
    assert two.note is None and bool(after.isfinite().all())
    right = fitted(head, logits, logits.argmax(1))  # every decision is right
    assert bool(probabilities(head, logits, right.values).isfinite().all())
    with pytest.raises(ValueError, match="all of one class"):
        fitted(head, logits[labels == 2], labels[labels == 2])
