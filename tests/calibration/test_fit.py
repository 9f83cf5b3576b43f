"""Fitting a head touches its buffers alone, and reaches the optimum."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.calibration import evaluate, fit
from sparsify.errors import TrainingError
from sparsify.parts import metrics
from sparsify.parts.samples import TensorSamples
from tests.cases import digits


@pytest.fixture(scope="module")
def trained():
    """A program three times too sure of itself, and held-out samples."""
    torch.manual_seed(0)
    x, y = digits(900)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:600]), y[:600]).backward()
        optimizer.step()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return sp.trace(model, (x[:2],)).eval(), TensorSamples(x[600:], y[600:])


@pytest.mark.parametrize("kind", ["temperature", "vector"])
def test_only_the_head_changes_and_its_outputs_are_what_was_reported(trained, kind):
    program, held_out = trained
    program = sp.Pipeline.parse(f"attach-calibration-head{{kind={kind}}}")(program)
    before = {name: value.clone() for name, value in program.state_dict().items()}
    log = fit(program, held_out, batch_size=37)
    changed = {name for name, value in program.state_dict().items() if not torch.equal(value, before[name])}
    assert (
        changed
        == {"temperature": {"calibration.temperature"}, "vector": {"calibration.scale", "calibration.bias"}}[kind]
    )
    outputs = evaluate(program, held_out, batch_size=64)
    assert metrics.nll(outputs["probabilities"], held_out.labels) == pytest.approx(log.nll_after, abs=1e-6)
    assert metrics.ece(outputs["logits"].softmax(1), held_out.labels) == pytest.approx(log.ece_before, abs=1e-9)
    assert log.nll_after < log.nll_before
    assert (log.kind, log.samples) == (kind, 300)
    assert (log.temperature is None) == (kind == "vector")


def test_no_other_temperature_is_better(trained):
    program, held_out = trained
    program = sp.Pipeline.parse("attach-calibration-head")(program)
    log = fit(program, held_out)
    assert log.temperature is not None
    assert log.temperature > 1.1
    logits = evaluate(program, held_out)["logits"]
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0):
        other = (logits / (log.temperature * factor)).softmax(1)
        assert metrics.nll(other, held_out.labels) > log.nll_after


def test_evaluation_does_not_depend_on_the_batch_size(trained):
    program, held_out = trained
    one, many = (evaluate(program, held_out, batch_size=size)["logits"] for size in (1, 300))
    assert one.dtype is torch.float64
    assert torch.allclose(one, many, rtol=0, atol=1e-4)


def test_a_program_without_a_head_is_refused(trained):
    with pytest.raises(TrainingError, match="Apply attach-calibration-head"):
        fit(*trained)


def test_samples_without_an_optimum_are_refused(trained):
    program, held_out = trained
    program = sp.Pipeline.parse("attach-calibration-head")(program)
    right = (evaluate(program, held_out)["logits"].argmax(1) == held_out.labels).nonzero()[:, 0]
    x, y = held_out.batch(right)
    with pytest.raises(TrainingError, match="Hold out more"):
        fit(program, TensorSamples(x, y))
