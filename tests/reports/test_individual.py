"""Individual calibration of a run: the samples it is measured with, its rows in the report, and why it may be missing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.calibration import fit
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


@pytest.mark.parametrize("kind", ["temperature", "vector", "isotonic"])
def test_after_calibration_every_leave_one_out_model_has_the_head(kind):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    program = sp.Pipeline.parse(f"attach-calibration-head{{kind={kind}}}")(sp.trace(model, (X,))).eval()
    logits = 5 * X.flatten(1) @ program.weight("1.weight").T.detach()
    program.weight("1.weight").data *= 5
    program.weight("1.bias").data *= 0
    fit(program, HELD)
    row = individual_row(program, HELD, TEST, logits[200:])
    found = jackknife(X[100:200].flatten(1), Y[100:200], program.weight("1.weight"), program.weight("1.bias"))

    def calibrated(weight, bias, x):
        layer = dict(program.named_parameters())
        with torch.no_grad():
            kept = [layer[f"1.{n}"].clone() for n in ("weight", "bias")]
            layer["1.weight"].copy_(weight)
            layer["1.bias"].copy_(bias)
            p = program.outputs(x)["probabilities"].double()
            layer["1.weight"].copy_(kept[0])
            layer["1.bias"].copy_(kept[1])
        return p

    p = calibrated(program.weight("1.weight"), program.weight("1.bias"), X[200:])
    predicted, own, others = p.argmax(1), [], []
    for i in range(100):  # the slow way: a program for each sample that is left out
        shift = found.shifts[i]
        moved = program.weight("1.weight").detach() + shift[:, :-1], program.weight("1.bias").detach() + shift[:, -1]
        confidence, guess = calibrated(*moved, X[100 + i : 101 + i])[0].max(0)
        own.append(abs(float(guess == Y[100 + i]) - float(confidence)))
        others.append(calibrated(*moved, X[200:]).gather(1, predicted[:, None])[:, 0])
    residuals, others = torch.tensor(own, dtype=torch.float64)[:, None], torch.stack(others)
    low, high = (others - residuals).quantile(0.05, 0), (others + residuals).quantile(0.95, 0)
    wanted = individual_calibration(p, (low + high) / 2, Y[200:])
    assert row["after"]["eice"] == pytest.approx(wanted["eice"], abs=1e-5)
    assert row["after"]["signed"] == pytest.approx(wanted["signed"], abs=1e-5) != pytest.approx(row["signed"], abs=1e-4)
    assert IndividualCalibration.model_validate(row).after.samples == 100


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
    after = {
        "samples": 100,
        "eice": 0.012,
        "signed": 0.004,
        "classes": [None, {"samples": 100, "eice": 0.012, "signed": 0.004}],
    }
    both = individual_rows({"model": {"individual": {**row, "after": after}}, "dense": {"individual": row}})
    assert both[:4] == [
        ("EICE, before", "0.0290", "0.0290"), ("EICE, after", "", "0.0120"),
        ("confidence less centre of interval, before", "-0.0110", "-0.0110"),
        ("confidence less centre of interval, after", "", "+0.0040"),
    ]  # fmt: skip
    assert both[5] == ("largest EICE of a class, after", "", "0.0120 (class 1, 100 samples)")
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
