"""Files of a program: in int8 from the data it was made with, beside fp32, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import ExportError, RecipeError
from sparsify.figures import metrics
from sparsify.loading import load_data
from sparsify.runs import artefacts
from sparsify.runs.artefacts import CALIBRATION, run_file, training_times, trials, write_int8
from sparsify.runs.exporting import export_saved
from sparsify.training import StepTimes
from sparsify.training.step_times import Compared


@pytest.fixture(scope="module")
def data():
    return load_data("digits", seed=0)


@pytest.fixture(scope="module")
def program(data):
    """Trained on digits, with a temperature that does not fit."""
    torch.manual_seed(0)
    x, y = data.train.batch(torch.arange(len(data.train)))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    program = sp.trace(model, (x[:2],)).train()
    optimizer = torch.optim.Adam(program.parameters(), lr=3e-3)
    for _ in range(60):
        nn.functional.cross_entropy(program(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    program = sp.Pipeline.parse("attach-calibration-head")(program.eval())
    program.tensor("calibration.temperature").fill_(3.0)
    return program


@pytest.fixture
def integers_first(monkeypatch):
    """Every file is as fast as it has layers in fp32."""

    def times(models, **_):
        return {name: -model.graph.num_nodes() for name, (model, _) in models.items()}

    monkeypatch.setattr("sparsify.exporters.int8_forms.times", times)
    monkeypatch.setattr("sparsify.exporters.int8_forms.time_layers", lambda *_, **__: {})


def test_the_int8_file_is_measured_on_test_samples_and_fitted_on_validation_samples(
    program, data, tmp_path, integers_first, monkeypatch
):
    seen = {}
    original = artefacts.export

    def export(*arguments, **options):
        seen.update(options)
        return original(*arguments, **options)

    monkeypatch.setattr("sparsify.runs.artefacts.export", export)
    result, row = write_int8(program, tmp_path / "m.onnx", data, batch=4)
    assert row["form"] == "dense, dense layers int8" and row["layers"] == {
        "1.weight": "int8 dense",
        "3.weight": "fp32 dense",
    }
    assert len(seen["calibration"][0]) == CALIBRATION and torch.equal(seen["labels"], data.validation.targets)
    outputs = run_file(tmp_path / "m.onnx", data.test)
    assert row["accuracy"] == metrics.accuracy(outputs["logits"].softmax(1), data.test.targets)
    assert row["ece_after"] == metrics.ece(outputs["probabilities"], data.test.targets)
    assert row["ece_after"] < row["fp32"]["ece_after"]  # the program's temperature is wrong, the file's is not
    assert abs(row["accuracy"] - row["fp32"]["accuracy"]) < 0.01 and row["agreement"] > 0.99
    assert row["held_out"]["samples"] == len(data.validation) and "fitted again: 3.0000 before" in row["head"]
    assert result.int8 is not None and result.bytes == row["bytes"] == (tmp_path / "m.onnx").stat().st_size
    assert not any("milliseconds" in key for key in row)
    assert trials(result.int8)["files"][0].keys() == {"name", "milliseconds"} and trials(result.int8)["batch"] == 4


def test_the_same_choice_gives_the_same_bytes(program, data, tmp_path, integers_first):
    for name in ("a", "b"):
        write_int8(program, tmp_path / f"{name}.onnx", data)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_saved_program_by_the_data_of_its_recipe(program, tmp_path, integers_first, monkeypatch):
    program.save(tmp_path / "p.sparsify")
    (tmp_path / "r.toml").write_text("[train]\nseed = 5\n[data]\nholdout = 0.25\n")
    asked = []
    original = artefacts.load_data
    for room in ("artefacts", "exporting"):
        monkeypatch.setattr(f"sparsify.runs.{room}.load_data", lambda *a, **k: asked.append(k) or original(*a, **k))
    given: dict[str, Any] = {"recipe": tmp_path / "r.toml", "precision": "int8"}
    result, row = export_saved(tmp_path / "p.sparsify", tmp_path / "m.onnx", **given)
    assert (asked[0]["seed"], asked[0]["holdout"]) == (5, 0.25) and row is not None and result.int8 is not None
    _, nothing = export_saved(tmp_path / "p.sparsify", tmp_path / "f.onnx")
    assert nothing is None and asked[1]["seed"] == 0


def test_misuse_leaves_no_file(program, tmp_path):
    program.save(tmp_path / "p.sparsify")
    (tmp_path / "r.toml").write_text("[train]\nseed = 5\n")
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"data": "digits", "recipe": tmp_path / "r.toml"}, RecipeError, "leave out --data"),
        ({"precision": "int4"}, ExportError, "fp32, int8"),
        ({"precision": "int8", "storage": "sparse"}, ExportError, "storage 'dense'"),
        ({"precision": "int8", "batch": 5000}, ExportError, "batch size for timing that is at most their number"),
    ]
    for options, error, message in cases:
        with pytest.raises(error, match=message):
            export_saved(tmp_path / "p.sparsify", tmp_path / "m.onnx", **options)
    assert not (tmp_path / "m.onnx").exists()


def test_a_model_that_made_no_step_keeps_the_times_of_an_earlier_file(tmp_path):
    path, compared = tmp_path / "latency.json", Compared(1.0, 2.0, 0.5, (0.4, 0.6), 50)
    new, old = StepTimes(1.5, 100, 64, compared), StepTimes(9.0, 30, 64, None, "no weight has a mask")
    assert training_times(path, {"model": None, "dense": None}) == {}
    latency = {
        "timings": [],
        "noise": [1.0, 1.0],
        "threads": 1,
        "batch": 1,
        "rounds": 10,
        "machine": {},
        "verdict": None,
    }
    path.write_text(json.dumps({**latency, "training": {"model": old.to_dict(), "dense": old.to_dict()}}))
    found = training_times(path, {"model": new, "dense": None})
    assert found == {"model": new.to_dict(), "dense": old.to_dict()}
    for damaged in ("{", json.dumps({**latency, "training": {"model": {"steps": 1}}})):
        path.write_text(damaged)
        assert training_times(path, {"model": None}) == {}
