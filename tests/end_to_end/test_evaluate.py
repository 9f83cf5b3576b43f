"""`sparsify evaluate` where torch cannot be imported: the figures of the run's own report, for the files of a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sparsify.figures.classifier import BOTH
from sparsify.runs.recipe import parse_recipe
from sparsify.runs.workflow import run
from tests.end_to_end.commands import command
from tests.evaluation.files import classifier

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "onnxscript", "onnx_ir", "onnx", "safetensors", "transformers"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
import sparsify.cli
sys.argv = ["sparsify", *sys.argv[1:]]
sparsify.cli.main()
"""


def without_torch(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process that cannot import torch."""
    words = [sys.executable, "-W", "error", "-c", BLOCKED, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A short run with a baseline, and out-of-distribution inputs."""
    out = tmp_path_factory.mktemp("run") / "a"
    recipe = {"method": "static", "sparsity": 0.5, "epochs": 2, "threads": 1, "baseline": True, "ood": ("photos",)}
    run(parse_recipe(None, recipe), out)
    return out


@pytest.mark.parametrize("part", ["model", "dense"])
def test_the_figures_are_those_of_the_run(folder, tmp_path, part):
    done = without_torch(
        "evaluate", folder / f"{part}.onnx", "--data", "digits", "--ood", "photos", "--out", tmp_path / "e"
    )
    assert done.returncode == 0, done.stderr
    assert "AUROC against photos" in done.stdout and "evaluation.html" in done.stdout
    ours = json.loads((folder / "metrics.json").read_text())[part]
    report = json.loads((tmp_path / "e" / "metrics.json").read_text())
    found = report["model"]
    for key in BOTH:
        for when in ("before", "after"):
            assert found[when][key] == pytest.approx(ours[f"{key}_{when}"], abs=2e-5), (key, when)
    assert (
        found["before"]["accuracy"] == ours["accuracy"] and found["before"]["class_accuracy"] == ours["class_accuracy"]
    )
    for key in ("adaptive_ece", "classwise_ece"):
        assert found["after"][key] == pytest.approx(ours[key], abs=2e-5)
    scores = found["ood"]["photos"]["scores"]
    assert {"maximum probability", "entropy", "energy"} == {*scores}  # a run also has those that read features
    for score, row in scores.items():
        for key in ("auroc", "aupr_in", "aupr_out", "fpr_at_95_tpr"):
            assert row[key] == pytest.approx(ours["ood"]["photos"]["scores"][score][key], abs=2e-3)
    assert "torch" not in report["versions"]
    page = (tmp_path / "e" / "evaluation.html").read_text()
    assert (
        page.count("<svg") == 3
        and "Out of distribution" in page
        and "http" not in page.split("</style>")[1].replace("http://www.w3.org", "")
    )


def test_two_files_beside_each_other(folder, tmp_path):
    arguments = (
        "evaluate",
        folder / "model.onnx",
        "--against",
        folder / "dense.onnx",
        "--data",
        "digits",
        "--out",
        tmp_path,
    )
    done = without_torch(*arguments)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "Better than dense.onnx:" in said and "Worse than dense.onnx:" in said
    rows = json.loads((tmp_path / "metrics.json").read_text())["differences"]
    for row in rows:
        low, high = row["interval"]
        assert (row["verdict"] == "no clear difference") == (low <= 0 <= high)
    assert "The first file less the second" in (tmp_path / "evaluation.html").read_text()


def test_a_command_that_needs_torch_says_so():
    done = without_torch("run")
    assert done.returncode == 2 and "this command needs torch, which is not installed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_of_another_tool_from_the_command(tmp_path):
    path = classifier(tmp_path / "other.onnx", outputs=("logits",), renamed={"logits": "output"}, metadata={})
    arguments = ("evaluate", path, "--data", "digits", "--logits", "output")
    code, _, err = command(*arguments)
    assert code == 2 and "Give --scale 255" in err and "Traceback" not in err
    code, shown, err = command(*arguments, "--scale", "255", "--mean", "0.3", "--std", "0.5")
    assert code == 0, err
    assert "other.onnx on 360 test samples of digits" in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mean", "a,b"], "--mean should hold numbers with commas"),
        (["--std", "0"], "std and scale should be above 0"),
        (["--layout", "CHW"], "layout should be one of NCHW, NHWC"),
        (["--part", "all"], "part should be one of"),
        (["--against", "none.onnx"], "there is no file none.onnx"),
        (["--ood", "none.npz"], "no data file none.npz"),
    ],
)
def test_wrong_options(tmp_path, options, words):
    code, _, err = command("evaluate", classifier(tmp_path / "m.onnx"), "--data", "digits", *options)
    assert code == 2 and words in " ".join(err.split()) and "Traceback" not in err


def test_the_folder_of_a_run_and_an_earlier_evaluation_are_kept(folder, tmp_path):
    path = classifier(tmp_path / "m.onnx")
    before = (folder / "metrics.json").read_bytes()
    code, _, err = command("evaluate", path, "--data", "digits", "--out", folder)
    assert code == 2 and "metrics.json of something else" in " ".join(err.split())
    assert (folder / "metrics.json").read_bytes() == before
    assert command("evaluate", path, "--data", "digits", "--out", tmp_path / "e")[0] == 0
    first = (tmp_path / "e" / "metrics.json").read_bytes()
    code, _, err = command("evaluate", path, "--data", "digits", "--out", tmp_path / "e")
    assert code == 2 and "--overwrite" in err
    assert command("evaluate", path, "--data", "digits", "--out", tmp_path / "e", "--overwrite")[0] == 0
    assert (tmp_path / "e" / "metrics.json").read_bytes() == first, "the same bits"


def test_many_classes_and_sets_on_the_page(tmp_path):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(64, 30)).astype(np.float32), np.zeros(30, np.float32)
    outputs = ("logits", "probabilities", "prediction_set", "accept")
    path = classifier(tmp_path / "m.onnx", outputs=outputs, weight=weight)
    assert command("evaluate", path, "--data", "digits", "--out", tmp_path / "e")[0] == 0
    page = (tmp_path / "e" / "evaluation.html").read_text()
    assert (
        "<summary>All classes</summary>" in page
        and "Prediction sets by size" in page
        and "share of accepted answers" in page
    )
