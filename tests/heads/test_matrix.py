"""Matrix scaling and Dirichlet calibration: identity, golden values, real digits, and classes that are ruled out."""

from __future__ import annotations

import math

import pytest
import torch

from sparsify.figures import metrics
from sparsify.heads import Dirichlet, HeldOut, Matrix, Vector, run
from sparsify.tasks import Classification
from tests.cases import held_out_logits

TASK = Classification()
Z = torch.tensor([[2.0, 1.0, 0.1], [0.5, 2.5, -0.5], [1.0, 1.2, 0.8], [-1.0, 0.0, 3.0]], dtype=torch.float64)


def probabilities(head, output, values):
    return head.apply(run, output, {name: value.to(output.dtype) for name, value in values.items()}, TASK)[0]


@pytest.mark.parametrize("head", [Matrix(), Dirichlet()], ids=lambda head: head.name)
def test_before_a_fit_the_probabilities_are_those_of_the_model(head):
    state = head.identity(("N", 3))
    torch.testing.assert_close(probabilities(head, Z, state), Z.softmax(1), rtol=0, atol=1e-12)
    ruled_out = Z.float().index_fill(1, torch.tensor([1]), -torch.inf)
    found = probabilities(head, ruled_out, state)
    torch.testing.assert_close(found, ruled_out.softmax(1), rtol=0, atol=1e-6)


def test_the_probabilities_by_hand():
    matrix = torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    bias = torch.tensor([0.0, 0.0, math.log(2)], dtype=torch.float64)
    logits = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    scores = [1 + 0.5 * 2, 2 * 2, 3 + math.log(2)]  # W z + b
    want = torch.tensor([[math.exp(score) for score in scores]], dtype=torch.float64)
    found = probabilities(Matrix(), logits, {"matrix": matrix.T, "bias": bias})
    torch.testing.assert_close(found, want / want.sum())
    total = math.log(math.exp(1) + math.exp(2) + math.exp(3))
    scores = [1 - total + 0.5 * (2 - total), 2 * (2 - total), 3 - total + math.log(2)]  # W log p + b
    want = torch.tensor([[math.exp(score) for score in scores]], dtype=torch.float64)
    found = probabilities(Dirichlet(), logits, {"powers": matrix.T, "offset": bias})
    torch.testing.assert_close(found, want / want.sum())


def test_dirichlet_reads_no_log_probability_below_that_of_1e_12():
    state = {"powers": 0.5 * torch.eye(2), "offset": torch.zeros(2)}
    found = probabilities(Dirichlet(), torch.tensor([[0.0, -100.0], [0.0, -torch.inf]]), state)
    want = torch.tensor([1.0, 1e-6]) / (1 + 1e-6)  # 1 and 1e-12 to the power of a half
    torch.testing.assert_close(found, want.expand(2, 2), rtol=1e-4, atol=0)


@pytest.mark.parametrize("head", [Matrix(), Dirichlet()], ids=lambda head: head.name)
def test_samples_left_out_are_predicted_better_than_before_and_no_worse_than_by_a_vector(head):
    logits, labels = held_out_logits(1500)
    first, second = HeldOut(logits[:1000], labels[:1000], TASK), labels[1000:]
    fitted = head.fit(first, head.identity(("N", 10)))
    assert fitted.note is None
    after = probabilities(head, logits[1000:], fitted.values)
    vector = probabilities(Vector(), logits[1000:], Vector().fit(first, {}).values)
    before = logits[1000:].softmax(1)
    assert metrics.nll(after, second) < 0.9 * metrics.nll(before, second)
    assert metrics.nll(after, second) <= metrics.nll(vector, second) + 0.01
    assert metrics.ece(after, second) < metrics.ece(before, second)


@pytest.mark.parametrize(("head", "kept"), [(Matrix(), False), (Dirichlet(), True)], ids=["matrix", "dirichlet"])
def test_a_class_that_is_ruled_out_for_samples(head, kept):
    logits, labels = held_out_logits(300)
    logits = logits.index_fill(1, torch.tensor([3]), -torch.inf)[labels != 3]
    held = HeldOut(logits, labels[labels != 3], TASK)
    if kept:  # log-probabilities are cut off
        values = head.fit(held, head.identity(("N", 10))).values
        found = probabilities(head, logits, values)
        assert bool(found.isfinite().all()) and float(found[:, 3].max()) < 1e-3
    else:
        with pytest.raises(ValueError, match="hold infinity"):
            head.fit(held, head.identity(("N", 10)))
