"""A head of a plug-in that adds a set of classes and a score: exported in fp32 and int8, proved, run and reported."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.calibration import fit
from sparsify.heads import HEADS, register
from sparsify.parts.samples import TensorSamples
from sparsify.runs.recipe import parse_recipe
from sparsify.runs.workflow import run
from tests.cases import digits
from tests.end_to_end.test_work_kept import TINY, files
from tests.heads.test_contract_beside import Distance, Sets

__all__ = ["files"]


@pytest.fixture
def installed():
    with HEADS.forgetting():
        yield register(Sets()), register(Distance())


def trained():
    """A classifier of digits with fitted sets, and samples that it has not seen."""
    x, y = digits(1200)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:600]), y[:600]).backward()
        optimizer.step()
    program = sp.Pipeline.parse("attach-calibration-head{kind=sets}")(sp.trace(model, (x[:2],))).eval()
    fit(program, TensorSamples(x[600:900], y[600:900]))
    return program, (x, y)


def test_sets_and_scores_are_exported_and_proved_in_fp32_and_int8(installed, tmp_path):
    program, (x, y) = trained()
    given = {"inputs": [x[900:]], "held_out": [x[600:900]], "labels": y[600:900], "calibration": [x[:256]]}
    for precision in ("fp32", "int8"):
        result = sp.export(program, tmp_path / f"{precision}.onnx", precision=precision, **given)
        session = onnxruntime.InferenceSession(str(result.path))
        assert {o.name: (o.type, len(o.shape)) for o in session.get_outputs()} == {
            "logits": ("tensor(float)", 2), "probabilities": ("tensor(float)", 2), "classes": ("tensor(bool)", 2),
            "confidence": ("tensor(float)", 1),
        }  # fmt: skip
        names = ("probabilities", "classes", "confidence")
        found = dict(zip(names, session.run(names, {session.get_inputs()[0].name: x[900:].numpy()}), strict=True))
        assert 0.85 < found["classes"][np.arange(300), y[900:].numpy()].mean() < 0.97  # level 0.9
        assert np.array_equal(found["confidence"], found["probabilities"].max(1)) and result.head == "sets"
        if precision == "fp32":
            want = program.outputs(x[900:])
            assert np.array_equal(found["classes"], want["classes"].numpy()) and result.parity.units == 10 + 10 + 10 + 1
            low = np.where(found["classes"], found["probabilities"], 1).min()
            assert low >= float(program.tensor("calibration.threshold")) - 1e-6


def test_a_run_reports_a_head_that_makes_no_probabilities(installed, files, tmp_path):
    keys = {
        **TINY,
        "epochs": 1,
        "model": f"{files}/m.py:build",
        "data": f"{files}/d.py:chance",
        "calibrator": "distance",
    }
    report = run(parse_recipe(None, keys), tmp_path / "a", timed=False)
    model = report["model"]
    assert report["outputs"] == ["logits", "ood_score"] and model["ood_threshold"] is not None
    assert (model["calibration"]["kind"], model["calibration"]["nll_before"]) == ("distance", None)
    assert model["ece_before"] == model["ece_after"] and model["accuracy_after"] == model["accuracy"]
    told = "The head distance was fitted on 20 held-out samples, and makes no probabilities."
    assert told in (tmp_path / "a" / "report.html").read_text()
