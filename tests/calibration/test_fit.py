"""Fitting a program's head: the optimum, the head alone, and what cannot be fitted."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.calibration import evaluate, fit
from sparsify.errors import TrainingError
from sparsify.figures import metrics
from sparsify.parts.samples import TensorSamples


@functools.cache
def traced():
    return sp.trace(nn.Linear(4, 4), (torch.rand(2, 4),))


def overconfident(n=600, factor=3.0):
    """Inputs that are log-probabilities themselves, labels drawn from them, and a layer that multiplies them by ``factor``."""
    generator = torch.Generator().manual_seed(0)
    z = 1.5 * torch.randn(n, 4, generator=generator)
    labels = torch.multinomial(z.softmax(1), 1, generator=generator).squeeze(1)
    program = traced().clone().eval()
    with torch.no_grad():
        program.weight("weight").copy_(factor * torch.eye(4))
        program.get_parameter("bias").zero_()
    return program, TensorSamples(z, labels)


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
    assert metrics.nll(after, samples.targets) == pytest.approx(log.nll_after, rel=1e-5)


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


def test_a_program_without_parameters_is_calibrated():
    program, samples = overconfident()
    logits = TensorSamples(evaluate(program, samples)["logits"].float(), samples.targets)
    for model in (nn.Flatten(), nn.BatchNorm1d(4, affine=False)):  # with neither, and with buffers
        given = sp.Pipeline.parse("attach-calibration-head")(sp.trace(model, (logits.inputs[:2],))).eval()
        assert fit(given, logits).temperature == pytest.approx(3.0, rel=0.1)


def test_evaluation_in_batches_is_evaluation_at_once():
    program, samples = overconfident(n=50)
    whole, parts = evaluate(program, samples), evaluate(program, samples, batch_size=7)
    assert whole["logits"].dtype is torch.float64 and whole["logits"].shape == (50, 4)
    torch.testing.assert_close(whole["logits"], parts["logits"])


def test_no_head_and_nan_are_refused():
    program, samples = overconfident(n=50)
    with pytest.raises(TrainingError, match="Apply attach-calibration-head first"):
        fit(program, samples)
    with torch.no_grad():
        program.weight("weight").fill_(float("nan"))
    with pytest.raises(TrainingError, match="NaN or infinite logits"):
        fit(sp.Pipeline.parse("attach-calibration-head")(program), samples)


RIGHT = torch.tensor([0, 1, 2, 3]).repeat(5)
LABELS = {
    "all right": (RIGHT, "classify all held-out data correctly"),
    "all wrong": ((RIGHT + 1) % 4, "no better than chance"),
    "one sample": (RIGHT[:1], "classify all held-out data correctly"),
    "one wrong sample": (RIGHT[:1] + 1, "no better than chance"),
    "a class missing": (RIGHT[RIGHT != 3], "classify all held-out data correctly"),
}


@pytest.mark.parametrize("kind", ["temperature", "vector", "matrix", "dirichlet"])
@pytest.mark.parametrize("name", LABELS)
def test_held_out_samples_that_say_nothing_leave_a_usable_head_and_a_note(name, kind):
    labels, reason = LABELS[name]
    program, _ = overconfident()
    program = sp.Pipeline.parse(f"attach-calibration-head{{kind={kind}}}")(program).eval()
    rows = RIGHT[RIGHT != 3] if name == "a class missing" else RIGHT[: len(labels)]
    samples = TensorSamples(torch.eye(4)[rows], labels)
    log = fit(program, samples)
    assert log.note is not None and reason in log.note
    outputs = evaluate(program, samples)
    assert torch.isfinite(outputs["probabilities"]).all() and log.samples == len(labels)
    if kind == "temperature":
        assert log.temperature == 1.0 and log.nll_after == log.nll_before
        torch.testing.assert_close(outputs["probabilities"], outputs["logits"].softmax(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["temperature", "vector", "matrix", "dirichlet"])
def test_constant_logits_leave_a_head_that_is_finite(kind):
    program, samples = overconfident(n=40)
    with torch.no_grad():
        program.weight("weight").zero_()
    program = sp.Pipeline.parse(f"attach-calibration-head{{kind={kind}}}")(program).eval()
    log = fit(program, samples)
    assert log.note is not None and "equal for all classes" in log.note
    assert log.nll_after <= log.nll_before


def test_few_samples_are_called_rough_and_many_are_not():
    program, samples = overconfident(n=600)
    program = sp.Pipeline.parse("attach-calibration-head")(program).eval()
    assert fit(program, samples).note is None
    few = fit(program, TensorSamples(samples.inputs[:12], samples.targets[:12]))
    assert few.note is not None and "rough estimate, from 12 held-out samples of 4 classes" in few.note
