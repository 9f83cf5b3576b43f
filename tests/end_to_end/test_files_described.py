"""What a run says of its file, in its metadata and in the lines of its report, is enough to feed and read it in ONNX Runtime."""

from __future__ import annotations

import html
import json
import re

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.metrics import r2_score

from sparsify.loading import load_data
from sparsify.reading.digits import digits_arrays
from sparsify.reports import verdict
from sparsify.runs.exporting import export_saved
from sparsify.runs.recipe import parse_recipe
from sparsify.runs.workflow import run
from tests.end_to_end.commands import command

FILE = """
import torch
from torch import nn
from sparsify.reading.digits import digits_arrays

FOUND = digits_arrays()
Y = {part: torch.from_numpy(FOUND[f"x_{part}"]).float().mean((1, 2)) for part in ("train", "test")}

def grey(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 1))

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(64, 2)

    def forward(self, x):
        found = self.body(x)
        return {"ink": found[:, 0], "doubt": found[:, 1:]}

def data():
    x = {part: torch.from_numpy(FOUND[f"x_{part}"]).flatten(1).float() / 255 for part in ("train", "test")}
    return (x["train"], Y["train"]), (x["test"], Y["test"])

def loss(output, target):
    return ((output["ink"] - target) ** 2).mean() + (output["doubt"] ** 2).mean()

def figures(output, target):
    return {"mse": float(((output["ink"] - target) ** 2).mean()), "ink": output["ink"].mean()}
"""
SMALL = {"method": "static", "sparsity": 0.5, "epochs": 4, "batch_size": 32, "lr": 0.01, "warmup": 0, "threads": 1}
NAMES = {"regression": ["prediction", "lower", "upper"], "custom": ["ink", "doubt"]}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "m.py").write_text(FILE)
    found = digits_arrays()
    parts = {f"x_{part}": found[f"x_{part}"] for part in ("train", "test")}
    parts |= {f"y_{part}": parts[f"x_{part}"].mean((1, 2)).astype(np.float32) for part in ("train", "test")}
    np.savez(tmp_path / "d.npz", **parts)
    return tmp_path


def trained(folder, task, **given):
    keys = {"model": f"{folder}/m.py:grey", "data": f"{folder}/d.npz", "task": task}
    if task == "custom":
        own = {"loss": f"{folder}/m.py:loss", "figures": f"{folder}/m.py:figures"}
        keys = {"model": f"{folder}/m.py:Two", "data": f"{folder}/m.py:data", "task": task, **own}
    return run(parse_recipe(None, {**SMALL, **keys, **given}), folder / "a", timed=False)


def printed(out, monkeypatch):
    """What the lines of the report that read arrays print, once they are executed in the folder of the run."""
    page = (out / "report.html").read_text()
    codes = [html.unescape(text) for text in re.findall(r'<pre class="usage">(.*?)</pre>', page, re.S)]
    (code,) = [code for code in codes if "np.load" in code]
    found = []
    monkeypatch.chdir(out)
    exec(code, {"print": found.append})
    (value,) = found
    return value


@pytest.mark.parametrize("input_type", ["float", "uint8"])
def test_the_lines_name_the_outputs_of_a_regression(folder, monkeypatch, input_type):
    report = trained(folder, "regression", export_input=input_type)
    found = printed(folder / "a", monkeypatch)
    assert [*found] == report["outputs"] == NAMES["regression"]
    wanted = np.load(folder / "d.npz")["y_test"]
    assert r2_score(wanted, found["prediction"][:, 0]) == pytest.approx(report["model"]["figures"]["r2"], abs=1e-4)
    held = (found["lower"][:, 0] <= wanted) & (wanted <= found["upper"][:, 0])
    assert held.mean() == pytest.approx(report["model"]["interval"]["coverage"])


def test_the_lines_name_the_outputs_of_a_custom_task(folder, monkeypatch):
    report = trained(folder, "custom")
    data = load_data(f"{folder}/m.py:data", seed=0, task="custom")
    x, y = data.test.batch(torch.arange(len(data.test)))
    np.save(folder / "a" / "inputs.npy", x.numpy())
    found = printed(folder / "a", monkeypatch)
    assert [*found] == report["outputs"] == NAMES["custom"]
    assert np.mean((found["ink"] - y.numpy()) ** 2) == pytest.approx(report["model"]["figures"]["mse"], rel=1e-4)


def test_a_regression_on_pictures_has_the_scale_of_both_its_ends(folder):
    report = trained(folder, "regression", export_precision="int8", data=f"{folder}/d.npz")
    again = folder / "again.onnx"
    export_saved(folder / "a" / "program.sparsify", again, data=f"{folder}/d.npz", task="regression")
    arrays = np.load(folder / "d.npz")
    for file in (folder / "a" / "model.onnx", folder / "a" / "model-int8.onnx", again):
        session = onnxruntime.InferenceSession(str(file))
        told = session.get_modelmeta().custom_metadata_map
        assert told["preprocessing"] == "(x / scale - mean) / std, by the caller"
        assert told["scale"] == "255.0" and json.loads(told["prediction_scale"]) == report["data"]["scale"]
        x = arrays["x_test"].astype(np.float32)[:, None] / float(told["scale"])
        x = ((x - json.loads(told["mean"])) / json.loads(told["std"])).astype(np.float32)
        (have,) = session.run(["prediction"], {session.get_inputs()[0].name: x})
        assert r2_score(arrays["y_test"], have[:, 0]) == pytest.approx(report["model"]["figures"]["r2"], abs=0.02)


def test_a_custom_figure_is_called_better_only_where_a_user_says_so(folder):
    own = ("--task", "custom", "--loss", f"{folder}/m.py:loss", "--figures", f"{folder}/m.py:figures", "--baseline")
    keys = ("train.epochs=1", "train.threads=1", "train.warmup=0", "method.name=static")
    given = (
        "run",
        f"{folder}/m.py:Two",
        "--data",
        f"{folder}/m.py:data",
        *own,
        *(w for key in keys for w in ("--set", key)),
    )
    for value, said in (
        ("rmse", "lower_is_better of task 'custom' names 'rmse'"),
        ("3", "task 'custom': lower_is_better should be a text, found 3"),
    ):
        code, _, err = command(*given, "--set", f"task.options.lower_is_better={value}", "--out", folder / "b")
        assert code == 2 and said in err and not (folder / "b").exists()
    code, _, err = command(*given, "--set", "task.options.lower_is_better=mse", "--out", folder / "b")
    assert code == 0, err
    report = json.loads((folder / "b" / "metrics.json").read_text())
    assert report["model"]["undirected"] == ["ink"] and report["paired"]["interval"][0] > 0
    first, *_, last = verdict(report, None)
    assert first.startswith("mse: worse than dense, +")
    assert re.search(r"dense: mse \S+ against \S+; not known of ink, of which nothing says", last)
    page = (folder / "b" / "report.html").read_text()
    assert "Worse than the dense model: mse " in page and "which is better, beside the dense model: ink " in page
    assert "Better than the dense model" not in page
