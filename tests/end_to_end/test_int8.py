"""int8 files from the command: of a run, and of a program it saved."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from sparsify.exporters import int8_dense, int8_forms
from sparsify.loading import load_data
from sparsify.reports import int8_sentence
from sparsify.runs.workflow import run
from tests.end_to_end.test_command import SHORT, sparsify
from tests.end_to_end.test_work_kept import files, recipe_of
from tests.exporters.test_int8_export import most_int8

__all__ = ["files"]

PERCEPTRON = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
"""


@pytest.fixture
def integers_first(monkeypatch):
    """The more layers compute in integers, the faster a form is said to be."""
    monkeypatch.setattr(int8_forms, "time_layers", lambda *_, **__: {})
    monkeypatch.setattr(
        int8_forms, "times", lambda models, **_: {name: -most_int8(model) for name, (model, _) in models.items()}
    )


@pytest.mark.parametrize(
    ("data", "changes", "keys"),
    [
        ("digits", {"heads": ("mahalanobis",), "calibrator": "masked-temperature:0.4:3"}, {"ood_threshold", "calibration_fit"}),
        ("digits", {"heads": ("energy", "lac:0.8"), "calibrator": "h-calibration"}, {"ood_threshold", "calibration_fit"}),
        ("one_each", {"calibrator": "temperature"}, {"calibration_note"}),
    ],
)  # fmt: skip
def test_an_int8_file_has_the_metadata_of_the_fp32_file(files, tmp_path, integers_first, data, changes, keys):
    recipe = recipe_of(files, data, export_precision="int8", **changes)
    if data == "digits":
        (tmp_path / "m.py").write_text(PERCEPTRON)
        recipe = dataclasses.replace(recipe, model=f"{tmp_path}/m.py:build", data="digits")
    model = run(recipe, tmp_path / "a", timed=False)["model"]
    fp32, int8 = (
        {prop.key: prop.value for prop in onnx.load(tmp_path / "a" / name).metadata_props}
        for name in ("model.onnx", "model-int8.onnx")
    )
    assert "int8" in model["int8"]["form"] and fp32.keys() == int8.keys() - {"precision"} and keys <= fp32.keys()
    assert {key for key in fp32 if fp32[key] != int8[key]} <= {"ood_threshold", "calibration_fit"}
    if "calibration_fit" in keys:
        assert json.loads(fp32["calibration_fit"]).keys() == json.loads(int8["calibration_fit"]).keys()
    if "ood_threshold" in keys:
        session = onnxruntime.InferenceSession(tmp_path / "a" / "model-int8.onnx")
        held = load_data(recipe.data, seed=recipe.seed, holdout=recipe.holdout).validation
        inputs = held.batch(torch.arange(len(held))).inputs.numpy()
        (scores,) = session.run(["ood_score"], {session.get_inputs()[0].name: inputs})
        threshold = float(int8["ood_threshold"])
        assert threshold == pytest.approx(np.quantile(scores, 0.05), rel=1e-6) == model["int8"]["ood_threshold"]
        assert threshold != float(fp32["ood_threshold"]) == model["ood_threshold"]
    assert (tmp_path / "a" / "model-int8.onnx").stat().st_size == model["int8"]["bytes"]


@pytest.mark.filterwarnings("always::sparsify.errors.ExportWarning")
def test_a_single_validation_sample_leaves_json_that_every_reader_takes(files, tmp_path, integers_first):
    run(recipe_of(files, "one", calibrator="vector", export_precision="int8"), tmp_path / "a", timed=False)

    def refused(text):
        raise AssertionError(f"JSON has no {text}")

    text = (tmp_path / "a" / "metrics.json").read_text()
    row = json.loads(text, parse_constant=refused)["model"]["int8"]
    assert "at least two held-out samples" in row["refused"] and row["form"] == "dense, fp32"
    assert row["held_out"]["samples"] == 1 and 0 <= row["held_out"]["largest_error"] < 1e-5
    assert "largest error" in (tmp_path / "a" / "report.html").read_text()


def test_int8_of_a_saved_program_is_shown_beside_fp32(capsys, tmp_path):
    run = tmp_path / "run"
    code, _, err = sparsify(
        capsys, "run", "--out", run, "--export-precision", "int8", "--set", "train.epochs=2", *SHORT
    )
    assert code == 0, err
    arguments = ("export", run / "program.sparsify", "--out", tmp_path / "m.onnx", "--precision", "int8", "--batch", 8)
    code, out, err = sparsify(capsys, *arguments, "--recipe", run / "recipe.toml")
    assert code == 0, err
    text = " ".join(out.split())
    assert "layers in int8" in text and "written," in text and "accuracy" in text and "Calibration head:" in text
    code, _, err = sparsify(capsys, *arguments, "--recipe", run / "recipe.toml", "--data", "digits", "--overwrite")
    assert code == 2 and "leave out --data" in err
    code, _, err = sparsify(
        capsys, "run", "--out", tmp_path / "b", "--set", "export.batch=5000", "--export-precision", "int8", *SHORT
    )
    assert code == 2 and "export.batch is 5000" in err and "Lower it" in err


@pytest.mark.filterwarnings("always::sparsify.errors.ExportWarning")
def test_a_run_whose_int8_form_is_refused_is_whole_and_says_why(capsys, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise ValueError("no kernel for it")

    monkeypatch.setattr(int8_dense.quantization, "quantize_static", fails)
    options = ("--export-precision", "int8", "--pattern", "unstructured", "--set", "train.epochs=1")
    code, _, err = sparsify(capsys, "run", "--out", tmp_path / "a", *options, *SHORT)
    assert code == 0, err
    assert "note: " in err and "computes in fp32, not in int8" in err and "no kernel for it" in err
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    row = metrics["model"]["int8"]
    assert "missing" not in metrics and row["form"] == "dense, fp32" and "no kernel for it" in row["refused"]
    assert row["held_out"]["outputs"].keys() == {"logits", "probabilities"} and row["agreement"] == 1
    assert "No int8 form may stand in for the program" in int8_sentence(row)
    report = (tmp_path / "a" / "report.html").read_text()
    assert "outputs compared, and how far each is off" in report
