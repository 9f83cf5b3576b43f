"""Individual calibration of a run: the samples it is measured with, its rows in the report, and why it may be missing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.figures.individual import individual_calibration
from sparsify.parts.jackknife import centres, jackknife
from sparsify.parts.samples import TensorSamples
from sparsify.reports import individual_row
from sparsify.reports.individual_form import IndividualCalibration, individual_rows
from tests.cases import digits
from tests.ir.test_classifier import FOUND

X, Y = digits(300)
HELD, TEST = TensorSamples(X[100:200], Y[100:200]), TensorSamples(X[200:], Y[200:])


def linear():
    torch.manual_seed(1)
    return sp.trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (X,)).eval()


def test_few_samples_are_all_measured():
    program = linear()
    logits = program(X[200:]).detach()
    row = individual_row(program, HELD, TEST, logits)
    weight, bias, predicted = program.weight("1.weight"), program.weight("1.bias"), logits.argmax(1)
    pieces = jackknife(X[100:200].flatten(1), Y[100:200], weight, bias)
    centre = centres(pieces, X[200:].flatten(1), predicted, weight, bias)
    wanted = individual_calibration(logits.double().softmax(1), centre, Y[200:])
    assert row["influences"] == 100 and row["samples"] == 100
    assert row["eice"] == pytest.approx(wanted["eice"], abs=1e-7)
    assert [entry["samples"] for entry in row["classes"]] == Y[200:].bincount().tolist()
    assert IndividualCalibration.model_validate(row).eice == row["eice"]


def test_a_large_last_layer_has_fewer_samples(monkeypatch):
    monkeypatch.setattr("sparsify.reports.individual.MOST_PARAMETERS", 650 * 20)
    program = linear()
    assert individual_row(program, HELD, TEST, program(X[200:]))["influences"] == 20
    monkeypatch.setattr("sparsify.reports.individual.MOST_PARAMETERS", 650)
    found = individual_row(program, HELD, TEST, program(X[200:]))
    assert found == {
        "reason": "intervals need 2 held-out samples; there are 100, and a last layer of 650 parameters allows 1"
    }


def test_logits_that_no_layer_makes_have_a_reason():
    program = sp.trace(FOUND["squeezenet"], (X,)).eval()
    found = individual_row(program, HELD, TEST, program(X[200:]))
    assert [*found] == ["reason"] and "linear in the inputs of" in found["reason"]
    assert IndividualCalibration.model_validate(found).eice is None


def test_the_rows_of_a_report():
    classes = [{"samples": 90, "eice": 0.01, "signed": 0.01}, None, {"samples": 10, "eice": 0.2, "signed": -0.2}]
    row = {"influences": 50, "samples": 100, "eice": 0.029, "signed": -0.011, "classes": classes}
    assert individual_rows({"model": {"individual": row}}) == [
        ("EICE, before", "0.0290"),
        ("confidence less centre of interval, before", "-0.0110"),
        ("largest EICE of a class, before", "0.2000 (class 2, 10 samples)"),
        ("EICE is of", "100 test samples, intervals by 50 held out"),
    ]
    assert (
        individual_rows({"model": {"individual": {"reason": "none"}}})
        == individual_rows({"model": {"accuracy": 1.0}})
        == []
    )
