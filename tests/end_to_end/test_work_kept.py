"""What comes after training never loses it, and what can be known before training is refused before it, leaving nothing behind."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import sparsify.runs.workflow as workflow
from sparsify.errors import CheckpointError, ExportError, SparsifyError, UnfinishedError
from sparsify.ir import Program
from sparsify.passes import Pipeline
from sparsify.runs.recipe import parse_recipe
from sparsify.runs.workflow import run
from tests.end_to_end.commands import command

MODELS = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))

class Inverse(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 2)
    def forward(self, x):
        return self.fc(x) + torch.linalg.eigvalsh(x.T @ x).sum()
"""
DATA = """
import numpy as np

def split(validation, labels):
    r = np.random.default_rng(0)
    x = r.normal(size=(160, 8)).astype("f4")
    y = (x[:, 0] > 0).astype("i8")
    x[:, 0] *= 50
    v = r.normal(size=(validation, 8)).astype("f4")
    v[:, 0] = np.where(np.arange(validation) % 2, 9, -9)
    w = np.arange(validation) % 2
    return (x[:96], y[:96]), (v, labels(w)), (x[96:], y[96:])

def perfect(): return split(20, lambda w: w)
def chance(): return split(20, lambda w: (np.arange(20) // 2) % 2)
def one_each(): return split(2, lambda w: w)
def one(): return split(1, lambda w: w)
def wide(): return [(np.c_[x, x], y) for x, y in perfect()]
"""
TINY = {"method": "static", "sparsity": 0.5, "epochs": 3, "batch_size": 32, "lr": 0.05, "warmup": 0, "threads": 1}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "m.py").write_text(MODELS)
    (folder / "d.py").write_text(DATA)
    return folder


def recipe_of(files: Path, data: str = "perfect", **changes):
    return parse_recipe(None, {**TINY, "model": f"{files}/m.py:build", "data": f"{files}/d.py:{data}", **changes})


@pytest.mark.parametrize(
    ("data", "calibrator", "note"),
    [
        ("perfect", "temperature", "classify all held-out data correctly"),
        ("chance", "temperature", "no better than chance"),
        ("one_each", "temperature", "classify all held-out data correctly"),
        ("one", "vector", "held only by its pull"),
    ],
)
def test_a_validation_part_that_says_nothing_leaves_a_verified_model(files, tmp_path, data, calibrator, note):
    report = run(recipe_of(files, data, calibrator=calibrator), tmp_path / "a", timed=False)
    assert note in report["model"]["calibration"]["note"] and report["model"]["parity"]["ok"]
    session = onnxruntime.InferenceSession(str(tmp_path / "a" / "model.onnx"))
    assert note in session.get_modelmeta().custom_metadata_map["calibration_note"]
    assert note in (tmp_path / "a" / "report.html").read_text()
    probabilities = session.run(["probabilities"], {session.get_inputs()[0].name: np.ones((3, 8), np.float32)})[0]
    np.testing.assert_allclose(np.asarray(probabilities).sum(1), 1, atol=1e-6)


def test_a_later_stage_that_fails_leaves_the_model_and_says_how_to_make_the_rest(files, tmp_path, monkeypatch):
    recipe, out = recipe_of(files, export_precision="int8", baseline=True), tmp_path / "a"

    def fails(*args, **kwargs):
        raise ExportError("the int8 file disagrees.")

    with monkeypatch.context() as patch:
        patch.setattr(workflow, "write_int8", fails)
        patch.setattr(workflow, "measure_latency", fails)
        with pytest.raises(UnfinishedError, match=r"model-int8.onnx is missing: the int8 file disagrees") as raised:
            run(recipe, out)
    assert f"sparsify export {out}/program.sparsify --recipe {out}/recipe.toml --out {out}/model-int8.onnx" in str(
        raised.value
    )
    assert f"sparsify export {out}/dense/program.sparsify" in str(raised.value) and "latency.json" in str(raised.value)
    assert (out / "model.onnx").exists() and (out / "dense.onnx").exists() and (out / "report.html").exists()
    assert raised.value.report is not None and raised.value.report["model"]["accuracy"] > 0.5
    steps = []
    report = run(recipe, out, resume=True, on_step=lambda part, row: steps.append(part))
    assert steps == [] and "missing" not in report
    assert (out / "model-int8.onnx").exists() and (out / "latency.json").exists()


def test_the_program_of_a_run_is_trained_on_and_refused_where_it_does_not_fit(files, tmp_path):
    first = run(recipe_of(files), tmp_path / "a", timed=False)
    saved = tmp_path / "a" / "program.sparsify"
    masks = Program.load(saved).masks()
    on = {"model": str(saved), "method": "rigl", "method_options": {"update_every": 2}, "epochs": 2}
    report = run(recipe_of(files, **on), tmp_path / "b", timed=False)
    assert report["model"]["active"] == first["model"]["active"] and report["model"]["parity"]["ok"]
    assert report["model"]["schedule"]["rounds"] == 1 and report["model"]["calibration"]["kind"] == "temperature"
    program = Program.load(tmp_path / "b" / "program.sparsify")
    assert any(not torch.equal(mask, program.mask(name)) for name, mask in masks.items())
    assert list(program.output_names("eval")) == ["logits", "probabilities"]
    pruned = run(
        recipe_of(files, **on | {"method": "one-shot", "sparsity": 0.75, "method_options": {}}), tmp_path / "c"
    )
    assert pruned["model"]["active"] == first["model"]["active"] // 2
    program.name = "folded"
    Pipeline.parse("fold-masks")(program).save(tmp_path / "folded.sparsify")
    refused = {
        r"density 0\.5, and method 'rigl' begins with 0\.1": {"sparsity": 0.9},
        "dense baseline cannot start from it": {"baseline": True},
        "Leave weights out": {"weights": "w.pt"},
        "its masks are folded": {"model": str(tmp_path / "folded.sparsify")},
        "no program at|does not exist|No such file|is missing": {"model": str(tmp_path / "none.sparsify")},
        "does not take these data": {"data": "wide"},
    }
    for message, changes in refused.items():
        with pytest.raises(SparsifyError, match=message):
            run(recipe_of(files, **{**on, **changes}), tmp_path / "d", timed=False)
        assert not (tmp_path / "d").exists()


def test_an_export_that_fails_leaves_both_programs_and_the_next_form_needs_no_training(files, tmp_path, monkeypatch):
    out = tmp_path / "a"
    export = workflow.export

    def fails(program, path, **kwargs):
        if kwargs["form"] == "auto":
            raise ExportError("the file disagrees.")
        return export(program, path, **kwargs)

    monkeypatch.setattr(workflow, "export", fails)
    with pytest.raises(UnfinishedError, match=r"dense.onnx is missing.*model.onnx is missing"):
        run(recipe_of(files, baseline=True), out, timed=False)
    assert (out / "program.sparsify").exists() and (out / "dense" / "program.sparsify").exists()
    assert (
        command("export", out / "program.sparsify", "--recipe", out / "recipe.toml", "--out", out / "by_hand.onnx")[0]
        == 0
    )
    steps = []
    changed = recipe_of(files, baseline=True, form="dense")
    report = run(changed, out, resume=True, timed=False, on_step=lambda part, row: steps.append(part))
    assert steps == [] and report["model"]["parity"]["ok"]
    written = dataclasses.replace(changed, calibrator="temperature")  # found for "auto"
    assert report["recipe_hash"] == written.hash() and (out / "recipe.toml").read_text() == written.to_toml()


REFUSED = {
    "opset": ({"opset": 99}, "opset"),
    "pattern that does not fit": ({"pattern": "nm:2:5", "sparsity": 0.6}, "divisible by 5"),
    "density below the floors": ({"sparsity": 0.9999}, "lowest density"),
    "operator without a translation": ({"model": "m.py:Inverse"}, "cannot convert"),
    "averaging and early stop": ({"method": "averaged(static)", "early_stop": 2}, "early-stop"),
    "more samples per call than there are": (
        {"export_batch": 100, "export_precision": "int8"},
        "export.batch is 100.*observes 96",
    ),
    "a warm-up longer than the run": ({"warmup": 1_000_000}, r"warmup is 1,000,000 steps, and the run has 9"),
    "a warm-up as long as the run": ({"warmup": 9}, r"warmup is 9 steps, and the run has 9.*below 9"),
    "device": ({"device": "cuda:77"}, "cuda:77"),
    "batch": ({"batch_size": 100}, "batch of 100"),
    "ood": ({"ood": ["d.py:nothing"]}, "nothing"),
    "teacher": ({"method": "distilled(static)", "teacher": "d.py"}, "d.py"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_the_first_step_and_nothing_is_left(files, tmp_path, monkeypatch, name):
    changes, message = REFUSED[name]
    changes = {key: f"{files}/{v}" if str(v).startswith(("m.py", "d.py")) else v for key, v in changes.items()}
    if "ood" in changes:
        changes["ood"] = [f"{files}/d.py:nothing"]
    steps = []
    with pytest.raises(SparsifyError, match=message):
        run(recipe_of(files, **changes), tmp_path / "new" / "a", on_step=lambda part, row: steps.append(part))
    assert steps == [] and list(tmp_path.iterdir()) == []


def test_a_corrected_command_works_in_the_same_folder(files, tmp_path):
    words = [
        "--data",
        f"{files}/d.py:perfect",
        "--method",
        "static",
        "--epochs",
        1,
        "--set",
        "train.batch_size=32",
        "--out",
        tmp_path / "a",
    ]
    words += ["--set", "train.threads=1"]
    assert command("run", f"{files}/m.py:bild", *words)[0] == 2
    code, _, err = command("run", f"{files}/m.py:build", *words)
    assert code == 0, err


def test_a_failed_start_leaves_what_an_earlier_run_left(files, tmp_path):
    (tmp_path / "recipe.toml").write_text("earlier")
    with pytest.raises(SparsifyError):
        run(recipe_of(files, sparsity=0.9999), tmp_path, overwrite=True)
    assert (tmp_path / "recipe.toml").read_text() == "earlier"


def test_an_output_inside_a_file_is_refused_before_the_data_are_read(files, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="cannot write into"):
        run(recipe_of(files, data="no_such_function"), tmp_path / "file" / "deep" / "a")
    assert (tmp_path / "file").read_text() == "mine"


def test_more_epochs_give_the_bits_of_a_longer_run(files, tmp_path):
    changes = {"schedule": "constant", "checkpoint_every": 2}
    run(recipe_of(files, **changes), tmp_path / "a", timed=False)
    steps = []
    longer = recipe_of(files, **changes, epochs=5)
    run(longer, tmp_path / "a", resume=True, timed=False, on_step=lambda part, row: steps.append(row["step"]))
    assert steps == list(range(10, 16))
    run(longer, tmp_path / "b", timed=False)
    for file in ("model.onnx", "metrics.json", "history.jsonl"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    with pytest.raises(CheckpointError, match="cannot be taken back"):
        run(recipe_of(files, **changes), tmp_path / "a", resume=True, timed=False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "schedule = 'cosine' plans the learning rate"),
        (
            {"schedule": "constant", "method": "set", "method_options": {"update_every": 2}},
            "the rounds of method 'set'",
        ),
        ({"schedule": "constant", "method": "averaged(static)"}, "the averaging of method"),
    ],
)
def test_a_run_planned_for_its_length_is_not_extended(files, tmp_path, changes, reason):
    (tmp_path / "recipe.toml").write_text(recipe_of(files, **changes).to_toml())
    with pytest.raises(CheckpointError, match=reason):
        run(recipe_of(files, **changes, epochs=9), tmp_path, resume=True)


def test_a_baseline_can_be_added_without_training_the_model_again(files, tmp_path):
    run(recipe_of(files), tmp_path / "a", timed=False)
    parts = []
    both = recipe_of(files, baseline=True)
    run(both, tmp_path / "a", resume=True, timed=False, on_step=lambda part, row: parts.append(part))
    assert set(parts) == {"dense"}
    run(both, tmp_path / "b", timed=False)
    assert (tmp_path / "a" / "metrics.json").read_bytes() == (tmp_path / "b" / "metrics.json").read_bytes()
    assert "flips" in json.loads((tmp_path / "a" / "metrics.json").read_text())
