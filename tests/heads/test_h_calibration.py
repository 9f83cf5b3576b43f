"""h-calibration as a head: identity, decisions, digits left out, and classes that are ruled out."""

from __future__ import annotations

import torch

from sparsify.figures import metrics
from sparsify.heads import HCalibration, HeldOut, run
from sparsify.parts.h_calibration import piecewise
from sparsify.tasks import Classification
from tests.cases import held_out_logits

HEAD, TASK = HCalibration(), Classification()


def probabilities(output, values):
    return HEAD.apply(run, output, {name: value.to(output.dtype) for name, value in values.items()}, TASK)[0]


def test_the_operators_compute_the_map():
    logits, _ = held_out_logits(50)
    torch.testing.assert_close(probabilities(logits, HEAD.identity(())), logits.softmax(1))
    slopes = 0.2 + torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = probabilities(logits, {**HEAD.identity(()), "segment_slopes": slopes})
    torch.testing.assert_close(found, (-piecewise(-logits.log_softmax(1), slopes)).softmax(1))


def test_decisions_stay_and_samples_left_out_are_predicted_better():
    logits, labels = held_out_logits(1500)
    fitted = HEAD.fit(HeldOut(logits[:1000], labels[:1000], TASK), HEAD.identity(()))
    after, rest = probabilities(logits[1000:], fitted.values), labels[1000:]
    assert fitted.note is None and torch.equal(after.argmax(1), logits[1000:].argmax(1))
    before = logits[1000:].softmax(1)
    assert metrics.nll(after, rest) < 0.9 * metrics.nll(before, rest)
    assert metrics.ece(after, rest) < metrics.ece(before, rest)
    assert fitted.figures.keys() == {"segments", "steps", "nll_apart_before", "nll_apart_after"}


def test_a_class_that_is_ruled_out_stays_out():
    logits, labels = held_out_logits(300)
    logits = logits.index_fill(1, torch.tensor([3]), -torch.inf)[labels != 3]
    values = HEAD.fit(HeldOut(logits, labels[labels != 3], TASK), HEAD.identity(())).values
    found = probabilities(logits, values)
    assert bool(found.isfinite().all()) and float(found[:, 3].max()) < 1e-6
