"""Ensemble temperature scaling: by hand, its decisions, and digits that it was not fitted to."""

from __future__ import annotations

import pytest
import torch

from sparsify.figures import metrics
from sparsify.heads import EnsembleTemperature, HeldOut, run
from sparsify.tasks import Classification
from tests.cases import held_out_logits

HEAD, TASK = EnsembleTemperature(), Classification()


def probabilities(output, values):
    return HEAD.apply(run, output, {name: value.to(output.dtype) for name, value in values.items()}, TASK)[0]


def test_by_hand():
    logits = torch.tensor([[0.0, 0.0, 0.0], [0.0, 2.0, -torch.inf]])
    found = probabilities(logits, {"temperature": torch.tensor(2.0), "shares": torch.tensor([0.5, 0.2, 0.3])})
    sure, plain = torch.tensor(1.0).sigmoid(), torch.tensor(2.0).sigmoid()
    right = float(0.5 * sure + 0.2 * plain + 0.1)  # the classes share 0.3 equally
    torch.testing.assert_close(found, torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.9 - right, right, 0.1]]))


def test_before_a_fit_the_probabilities_are_those_of_the_model():
    logits, _ = held_out_logits(50)
    torch.testing.assert_close(probabilities(logits, HEAD.identity(("N", 10))), logits.softmax(1))


def test_decisions_stay_and_samples_left_out_are_predicted_better():
    logits, labels = held_out_logits(1500)
    fitted = HEAD.fit(HeldOut(logits[:1000], labels[:1000], TASK), HEAD.identity(("N", 10)))
    after = probabilities(logits[1000:], fitted.values)
    assert fitted.note is None and torch.equal(after.argmax(1), logits[1000:].argmax(1))
    torch.testing.assert_close(after.sum(1), torch.ones(500).double())
    before, rest = logits[1000:].softmax(1), labels[1000:]
    assert metrics.nll(after, rest) < 0.9 * metrics.nll(before, rest)
    assert metrics.ece(after, rest) < metrics.ece(before, rest)


def test_few_samples_are_called_rough_and_others_refused():
    logits, labels = held_out_logits(1500)
    fitted = HEAD.fit(HeldOut(logits[:40], labels[:40], TASK), HEAD.identity(("N", 10)))
    assert fitted.note is not None and "rough estimate, from 40 held-out samples" in fitted.note
    with pytest.raises(ValueError, match="classify all held-out data correctly"):
        HEAD.fit(HeldOut(logits, logits.argmax(1), TASK), HEAD.identity(("N", 10)))
