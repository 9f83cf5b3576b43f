"""Fitting a program's head: the optimum, the head alone, and what cannot be fitted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.calibration import evaluate, fit
from sparsify.errors import TrainingError
from sparsify.parts import metrics
from sparsify.parts.samples import TensorSamples


def overconfident(n=600, factor=3.0):
    """Inputs that are log-probabilities themselves, labels drawn from them, and a layer that multiplies them by ``factor``."""
    generator = torch.Generator().manual_seed(0)
    z = 1.5 * torch.randn(n, 4, generator=generator)
    labels = torch.multinomial(z.softmax(1), 1, generator=generator).squeeze(1)
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight.copy_(factor * torch.eye(4))
        layer.bias.zero_()
    return sp.trace(layer, (z[:2],)).eval(), TensorSamples(z, labels)


def test_the_temperature_undoes_the_factor_and_nothing_else_changes():
    program, samples = overconfident()
    program = sp.Pipeline.parse("attach-calibration-head")(program).eval()
    before = {name: value.clone() for name, value in program.state_dict().items()}
    log = fit(program, samples)
    assert log.kind == "temperature" and log.samples == 600
    assert log.temperature == pytest.approx(3.0, rel=0.1)
    changed = [name for name, value in program.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["calibration.temperature"]
    assert log.nll_after < log.nll_before and log.ece_after < log.ece_before
    after = evaluate(program, samples)["probabilities"]
    assert metrics.nll(after, samples.labels) == pytest.approx(log.nll_after, rel=1e-5)


def test_a_vector_head_undoes_a_bias_too():
    program, samples = overconfident(n=3000)
    with torch.no_grad():
        program.weight("bias").copy_(torch.tensor([2.0, 0.0, 0.0, -2.0]))
    program = sp.Pipeline.parse("attach-calibration-head{kind=vector}")(program).eval()
    log = fit(program, samples)
    assert (log.kind, log.temperature) == ("vector", None)
    bias = program.tensor("calibration.bias")
    expected = torch.tensor([-2.0, 0.0, 0.0, 2.0]) / 3
    torch.testing.assert_close(bias - bias.mean(), expected, rtol=0, atol=0.25)
    torch.testing.assert_close(program.tensor("calibration.scale"), torch.full((4,), 1 / 3), rtol=0, atol=0.08)


def test_evaluation_in_batches_is_evaluation_at_once():
    program, samples = overconfident(n=50)
    whole, parts = evaluate(program, samples), evaluate(program, samples, batch_size=7)
    assert whole["logits"].dtype is torch.float64 and whole["logits"].shape == (50, 4)
    torch.testing.assert_close(whole["logits"], parts["logits"])


def test_no_head_and_no_optimum_are_said():
    program, samples = overconfident(n=50)
    with pytest.raises(TrainingError, match="Apply attach-calibration-head first"):
        fit(program, samples)
    right = TensorSamples(samples.inputs, samples.inputs.argmax(1))
    with pytest.raises(TrainingError, match=r"on 50 held-out samples: .*Hold out more"):
        fit(sp.Pipeline.parse("attach-calibration-head")(program), right)
