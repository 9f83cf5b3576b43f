"""Distillation from the command: from the baseline of the run, from a file to the same bits, resumed, and refused."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import sparsify as sp
from tests.end_to_end.commands import command
from tests.end_to_end.test_command import SHORT

METHOD = ("--method", "distilled(rigl)")
MODEL = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.py"
    path.write_text(MODEL)
    return f"{path}:build"


@pytest.fixture(scope="module")
def taught(model, tmp_path_factory):
    """A run that learned from its own baseline."""
    out = tmp_path_factory.mktemp("distilled") / "a"
    code, shown, err = command("run", model, "--out", out, *METHOD, "--baseline", *SHORT)
    assert code == 0, err
    assert "distilled(rigl)" in shown
    return out


def test_the_baseline_teaches(taught):
    report = json.loads((taught / "metrics.json").read_text())
    model, counts = report["model"], report["model"]["counts"]
    assert model["teacher"] == {"name": "dense baseline", "fingerprint": "", "accuracy": report["dense"]["accuracy"]}
    assert counts["forwards"] == 2 * counts["steps"] and counts["backwards"] == counts["steps"]
    assert "teacher" not in report["dense"] and report["dense"]["counts"]["forwards"] == counts["steps"]
    said = f"It learned from a teacher, dense baseline, of accuracy {report['dense']['accuracy']:.4f}."
    assert said in (taught / "report.html").read_text()


def test_the_same_teacher_in_a_file_gives_the_same_model_and_resumes(model, taught, tmp_path):
    teacher = taught / "dense" / "program.sparsify"
    code, _, err = command("run", model, "--out", tmp_path / "b", *METHOD, "--set", f"method.teacher={teacher}", *SHORT)
    assert code == 0, err
    programs = [sp.Program.load(folder / "program.sparsify").state_dict() for folder in (taught, tmp_path / "b")]
    assert all(torch.equal(value, programs[1][key]) for key, value in programs[0].items())
    row = json.loads((tmp_path / "b" / "metrics.json").read_text())["model"]["teacher"]
    assert row["name"] == str(teacher) and len(row["fingerprint"]) == 64
    before = (tmp_path / "b" / "model.onnx").read_bytes()
    (tmp_path / "b" / "model.onnx").unlink()
    code, _, err = command("run", "--out", tmp_path / "b", "--recipe", tmp_path / "b" / "recipe.toml", "--resume")
    assert code == 0, err
    assert (tmp_path / "b" / "model.onnx").read_bytes() == before


def test_a_teacher_that_changed_is_not_resumed_with(model, taught, tmp_path):
    teacher = tmp_path / "teacher.sparsify"
    teacher.write_bytes((taught / "dense" / "program.sparsify").read_bytes())
    options = ["run", model, "--out", tmp_path / "b", *METHOD, "--set", f"method.teacher={teacher}", *SHORT]
    assert command(*options)[0] == 0
    teacher.write_bytes((taught / "program.sparsify").read_bytes())
    code, _, err = command(*options, "--resume")
    assert code == 2 and "belongs to another recipe or other data" in err


def saved(path, model, example):
    sp.trace(model, (example,)).save(path)
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([*METHOD], "Train one in this run with baseline = true (--baseline), or name one with teacher ="),
        (["--method", "rigl", "--set", "method.teacher=x.sparsify"], "Wrap it: distilled(rigl)."),
        ([*METHOD, "--set", "method.teacher=absent.sparsify"], "no program at absent.sparsify"),
        ([*METHOD, "--set", "method.teacher=seven.sparsify"], "returns logits of shape [2, 7], the model [2, 10]"),
        ([*METHOD, "--set", "method.teacher=wide.sparsify"], "the teacher wide.sparsify does not take these data"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused_before_anything_is_trained(
    model, options, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "seven.sparsify", nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), torch.zeros(1, 1, 8, 8))
    saved(tmp_path / "wide.sparsify", nn.Sequential(nn.Flatten(), nn.Linear(81, 10)), torch.zeros(1, 1, 9, 9))
    code, _, err = command("run", model, "--out", "a", *options, *SHORT)
    assert code == 2 and message in " ".join(err.split()), err
    assert not (tmp_path / "a" / "history.jsonl").exists() and "Traceback" not in err
