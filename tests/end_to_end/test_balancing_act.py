"""Constraints on classes from the command: against the baseline of the run, a teacher in a file, resumed, and refused."""

from __future__ import annotations

import json

import pytest
import torch

import sparsify as sp
from sparsify.figures import metrics
from sparsify.loading import load_data
from sparsify.runs.recipe import parse_recipe
from sparsify.runs.teachers import TeacherProgram, referred
from tests.end_to_end.commands import command
from tests.end_to_end.test_command import SHORT
from tests.end_to_end.test_distilled import model as model  # a fixture

OPTIONS = ("memory=5", "dual_rate=0.2", "tolerance=0.0", "start_at=0.1")
METHOD = (
    "--method",
    "balancing-act(gmp)",
    *(word for pair in OPTIONS for word in ("--set", f"method.options.balancing-act.{pair}")),
)


@pytest.fixture(scope="module")
def balanced(model, tmp_path_factory):
    """A run that compared itself with its own baseline."""
    out = tmp_path_factory.mktemp("balanced") / "a"
    code, shown, err = command("run", model, "--out", out, *METHOD, "--baseline", *SHORT)
    assert code == 0, err
    assert "balancing-act(gmp)" in shown
    return out


def test_the_run_gives_the_recalls_of_its_baseline(balanced):
    rows = [json.loads(line) for line in (balanced / "history.jsonl").read_text().splitlines()]
    assert rows[-1]["readings"].keys() == {"largest_multiplier", "largest_gap"}
    assert rows[-1]["readings"]["largest_multiplier"] > 0
    report = json.loads((balanced / "metrics.json").read_text())
    assert report["model"]["method"] == "balancing-act(gmp)" and "teacher" not in report["model"]
    assert "learned from a teacher" not in (balanced / "report.html").read_text()
    recipe = parse_recipe(balanced / "recipe.toml", {})
    data, program = load_data("digits", seed=recipe.seed), sp.Program.load(balanced / "dense" / "program.sparsify")
    with torch.no_grad():
        logits = program.eval()(data.train.batch(torch.arange(len(data.train))).inputs)
    made = referred(recipe.build_method(), TeacherProgram(program, "dense baseline", ""), data)
    assert made.reference is None and made.objective is not None
    expected = metrics.class_accuracy(logits, data.train.targets)
    assert made.objective(100).dense == pytest.approx(expected, abs=0.01)  # another batch may round a tie the other way


def test_a_dense_model_in_a_file_gives_the_same_model_and_resumes(model, balanced, tmp_path):
    teacher, out = balanced / "dense" / "program.sparsify", tmp_path / "b"
    options = ("--out", out, *METHOD, "--set", f"method.teacher={teacher}", *SHORT)
    code, _, err = command("run", model, *options)
    assert code == 0, err
    programs = [sp.Program.load(folder / "program.sparsify").state_dict() for folder in (balanced, out)]
    assert all(torch.equal(value, programs[1][key]) for key, value in programs[0].items())
    before = (out / "model.onnx").read_bytes()
    (out / "model.onnx").unlink()
    code, _, err = command("run", model, *options, "--resume")
    assert code == 0, err
    assert (out / "model.onnx").read_bytes() == before


def test_a_run_without_a_dense_model_is_refused_before_training(model, tmp_path):
    code, _, err = command("run", model, "--out", tmp_path / "c", *METHOD, *SHORT)
    assert code == 2 and "needs another model in training" in " ".join(err.split()), err
    assert "baseline = true" in err and not (tmp_path / "c").exists()


def test_given_recalls_need_no_dense_model(model, tmp_path):
    given = "method.options.balancing-act.dense_recall=[1,1,1,1,1,1,1,1,1,1]"
    code, _, err = command("run", model, "--out", tmp_path / "d", *METHOD, "--set", given, *SHORT)
    assert code == 0, err
    code, _, err = command(
        "run", model, "--out", tmp_path / "e", *METHOD, "--set", given.replace("1,1,1]", "1]"), *SHORT
    )
    assert code == 2 and "dense_recall has 8 entries" in " ".join(err.split()), err
