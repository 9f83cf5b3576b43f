"""A regression on scikit-learn's diabetes, whose targets go from 25 to 346: learned at deviation 1, predicted in units everywhere."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.metrics import r2_score

from sparsify.errors import TaskError, TrainingWarning
from sparsify.ir import Program
from sparsify.passes.scale_prediction import scale_of
from sparsify.runs.exporting import export_saved
from sparsify.runs.pairs import parse_pairs
from sparsify.runs.recipe import parse_recipe
from sparsify.runs.workflow import run
from sparsify.tasks import Regression
from tests.end_to_end.commands import command

MODEL = """
import torch
from torch import nn

def build(outputs=1):
    return nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, outputs))

def two():
    return build(2)

def plain():
    return nn.Linear(10, 1)
"""


@pytest.fixture
def folder(tmp_path):
    found = load_diabetes()
    order = np.random.default_rng(0).permutation(len(found.data))
    x, y = (20 * found.data[order]).astype("float32"), found.target[order].astype("float32")
    (tmp_path / "m.py").write_text(MODEL)
    np.savez(tmp_path / "d.npz", x_train=x[:300], y_train=y[:300], x_test=x[300:], y_test=y[300:])
    both = np.stack([y, np.full_like(y, 7.0)], 1)
    np.savez(tmp_path / "two.npz", x_train=x[:300], y_train=both[:300], x_test=x[300:], y_test=both[300:])
    header = ",".join([*found.feature_names, "progression"])
    np.savetxt(tmp_path / "d.csv", np.column_stack([x, y]), delimiter=",", header=header, comments="")
    return tmp_path


def recipe(folder, *pairs, model="build", data="d.npz", **given):
    keys = {"model": f"{folder / 'm.py'}:{model}", "data": str(folder / data), "task": "regression", "threads": 1}
    return parse_recipe(None, keys | given | parse_pairs(["train.lr=0.01", *pairs]))


def served(folder, x):
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    return dict(
        zip(
            [output.name for output in session.get_outputs()],
            session.run(None, {session.get_inputs()[0].name: x}),
            strict=True,
        )
    )


def test_dense_and_90_percent_sparse_models_predict_in_units(folder):
    given = recipe(folder, baseline=True, holdout=0.3, method="distilled(gmp)")
    report = run(given, folder / "a", timed=False)
    arrays = np.load(folder / "d.npz")
    for part in ("dense", "model"):
        assert report[part]["figures"]["r2"] > 0.35
        assert report[part]["parity"]["ok"]
        assert 0.8 <= report[part]["interval"]["coverage"] <= 0.97
        assert "shortfall" not in report[part]
    assert report["model"]["density"] == pytest.approx(0.1, abs=0.01)

    outputs = served(folder / "a", arrays["x_test"])
    wanted = arrays["y_test"]
    assert r2_score(wanted, outputs["prediction"][:, 0]) == pytest.approx(report["model"]["figures"]["r2"], abs=1e-4)
    held = (outputs["lower"][:, 0] <= wanted) & (wanted <= outputs["upper"][:, 0])
    assert held.mean() == pytest.approx(report["model"]["interval"]["coverage"])

    scale = report["data"]["scale"]
    program = Program.load(folder / "a" / "program.sparsify")
    assert [value.tolist() for value in scale_of(program)] == [scale["mean"], scale["deviation"]]
    assert scale["mean"][0] == pytest.approx(arrays["y_train"].mean(), abs=15)
    written = {entry.key: entry.value for entry in onnx.load(folder / "a" / "model.onnx").metadata_props}
    assert json.loads(written["prediction_scale"]) == scale and "scale" not in written
    rows = [json.loads(line) for line in (folder / "a" / "history.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 1 and rows[-1]["val_rmse"] > 30  # the loss is of deviations, figures are of units

    again = run(given, folder / "a", resume=True, timed=False)
    assert again["model"]["figures"] == report["model"]["figures"]
    assert program.task == Regression()
    assert report["model"]["teacher"]["figures"] == report["dense"]["figures"]
    said = f"It learned from a teacher, dense baseline, of r2 {report['dense']['figures']['r2']:.4f}."
    assert said in (folder / "a" / "report.html").read_text()
    low, high = report["paired"]["interval"]
    assert low < report["paired"]["difference"] < high and high - low > 0.01
    for name, saved in (("model", "program.sparsify"), ("dense", "dense/program.sparsify")):
        export_saved(folder / "a" / saved, folder / "again.onnx", recipe=folder / "a" / "recipe.toml", overwrite=True)
        told = [
            {entry.key: entry.value for entry in onnx.load(path).metadata_props}
            for path in (folder / "again.onnx", folder / "a" / f"{name}.onnx")
        ]
        assert told[0] == told[1] and "interval_level" in told[0]


def test_through_the_command_with_its_defaults(folder):
    given = ("--data", folder / "d.csv", "--target", "progression", "--set", "data.test_holdout=0.25")
    given += ("--task", "regression", "--out", folder / "a", "--set", "train.threads=1")
    code, shown, err = command("run", folder / "m.py:build", *given)
    assert code == 0, shown + err
    assert json.loads((folder / "a" / "metrics.json").read_text())["model"]["figures"]["r2"] > 0.2
    assert "of no use" not in shown + err


def test_without_a_scale_the_run_says_that_the_model_is_of_no_use(folder):
    given = recipe(folder, "task.options.scale=none", "train.optimizer=adamw", "train.lr=1e-4")
    with pytest.warns(TrainingWarning, match="the model is of no use: on the validation samples r2 is -"):
        report = run(given, folder / "a", timed=False)
    assert report["model"]["shortfall"].startswith("on the validation samples r2 is -")
    assert "scale" not in report["data"]
    assert "The model is of no use: on the validation samples r2 is -" in (folder / "a" / "report.html").read_text()


def test_a_column_of_one_value_is_shifted_and_said(folder):
    with pytest.warns(TrainingWarning, match=r"columns of one value, which are only shifted: 1 \(always 7\)"):
        report = run(recipe(folder, model="two", data="two.npz"), folder / "a", timed=False)
    assert report["data"]["scale"]["deviation"][1] == 1.0 and report["data"]["scale"]["mean"][1] == 7.0
    found = served(folder / "a", np.load(folder / "two.npz")["x_test"])["prediction"]
    assert np.abs(found[:, 1] - 7).max() < 2


def test_a_model_that_predicts_the_targets_already_is_left_as_it_is(folder):
    arrays = np.load(folder / "d.npz")
    x = np.column_stack([arrays["x_train"], np.ones(300)])
    solved = torch.from_numpy(np.linalg.lstsq(x, arrays["y_train"], rcond=None)[0]).float()
    torch.save({"weight": solved[None, :-1], "bias": solved[-1:]}, folder / "w.pt")
    given = {"weights": str(folder / "w.pt"), "sparsity": 0.3, "method": "one-shot"}
    pairs = ("train.lr=0.001", "train.optimizer=adamw")
    report = run(recipe(folder, *pairs, model="plain", **given), folder / "a", timed=False)
    assert "scale" not in report["data"] and report["model"]["figures"]["r2"] > 0.2


def test_the_option_is_checked(folder):
    with pytest.raises(TaskError, match="should be one of standard, none, found 'minmax'"):
        recipe(folder, "task.options.scale=minmax").build_task()
