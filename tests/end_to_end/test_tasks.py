"""Every task through a run: trained sparse beside its baseline, calibrated, exported, proved, reported, and run in ONNX Runtime."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from sparsify.errors import DataError, RecipeError, SparsifyError, TaskError, TraceError, TrainingError
from sparsify.exporters import int8_forms
from sparsify.loading import load_data
from sparsify.reports import headline, int8_sentence, verdict
from sparsify.runs.artefacts import run_file
from sparsify.runs.exporting import export_saved
from sparsify.runs.pairs import parse_pairs
from sparsify.runs.recipe import parse_recipe
from sparsify.runs.workflow import run
from tests.end_to_end.commands import command

FILE = """
import torch
from torch import nn

G = torch.Generator().manual_seed(0)
X = torch.randn(600, 8, generator=G)
Z = X @ torch.randn(8, 6, generator=G) / 3
TARGETS = {
    "binary": Z[:, 0] > 0,
    "multilabel": (Z[:, :3] > 0).long(),
    "regression": Z[:, 0] + 0.2 * torch.randn(600, generator=G),
    "dense": Z.reshape(-1, 3, 2).argmax(1),
    "sequence": Z.reshape(-1, 2, 3).argmax(2),
    "custom": Z[:, 0],
    "classification": Z[:, :3].argmax(1),
}

class Net(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.body, self.head, self.shape = nn.Linear(8, 32), nn.Linear(32, max(1, torch.Size(shape).numel())), shape

    def forward(self, x):
        return self.head(torch.relu(self.body(x))).reshape(-1, *self.shape)

class Two(Net):
    def forward(self, x):
        found = super().forward(x)
        return {"mean": found[:, 0], "log_variance": found[:, 1]}

def binary(): return Net()
def multilabel(): return Net(3)
def regression(): return Net(1)
def dense(): return Net(3, 2)
def sequence(): return Net(2, 3)
def custom(): return Two(2)
def classification(): return Net(3)

def data(task):
    y = TARGETS[task]
    return (X[:500], y[:500]), (X[500:], y[500:])

def loss(output, target):
    error = (output["mean"] - target) ** 2
    return (0.5 * error * (-output["log_variance"]).exp() + 0.5 * output["log_variance"]).mean()

def figures(output, target):
    return {"within": float(((output["mean"] - target).abs() < 0.5).double().mean())}

def broken(output, target):
    return output["mean"].no_such_thing

def flat(output, target):
    return ((output["mean"].detach() - target) ** 2).mean()

def spoiling(output, target):
    target.zero_()
    return loss(output, target)

def overwriting(output, target):
    return loss({"mean": output["mean"].clamp_(-9e-9, 9e-9), "log_variance": output["log_variance"]}, target)

def spoiling_figures(output, target):
    target.zero_()
    return figures(output, target)

""" + "\n".join(
    f"def data_{task}(): return data({task!r})"
    for task in ("binary", "multilabel", "regression", "dense", "sequence", "custom", "classification")
)
OUTPUTS = {
    "binary": ["logits", "probabilities"],
    "multilabel": ["logits", "probabilities"],
    "regression": ["prediction", "lower", "upper"],
    "dense": ["logits", "probabilities"],
    "sequence": ["logits", "probabilities"],
    "custom": ["mean", "log_variance"],
}
HEADLINES = {
    "binary": ("auroc", 0.9),
    "multilabel": ("mean_average_precision", 0.9),
    "regression": ("r2", 0.8),
    "dense": ("mean_iou", 0.5),
    "sequence": ("accuracy", 0.7),
    "custom": ("within", 0.5),
}


HEADS = {
    "binary": "temperature fitted again: ",
    "multilabel": "temperatures of 3 labels fitted again",
    "regression": "intervals fitted again",
    "dense": "temperature fitted again: ",
    "sequence": "temperature fitted again: ",
    "custom": "none that can be fitted again",
}
"""What becomes of the calibration head of an int8 file."""


@pytest.fixture
def integers_first(monkeypatch):
    """Files with layers in integers are the fastest."""
    count = lambda model: sum(node.op_type == "DequantizeLinear" for node in model.graph)  # ruff: ignore[lambda-assignment]
    monkeypatch.setattr(int8_forms, "times", lambda models, **_: {k: -count(m) for k, (m, _) in models.items()})
    monkeypatch.setattr(int8_forms, "time_layers", lambda *_, **__: {})


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def recipe_of(file, task, *pairs, **given):
    own = {"loss": f"{file}:loss", "figures": f"{file}:figures"} if task == "custom" else {}
    keys = {"task": task, "model": f"{file}:{task}", "data": f"{file}:data_{task}", **own, **given}
    keys |= {"epochs": 12, "warmup": 0, "threads": 1, "lr": 0.02, "sparsity": 0.5, "optimizer": "adamw"}
    return parse_recipe(None, keys | parse_pairs(pairs))


@pytest.mark.parametrize("task", OUTPUTS)
def test_a_task_is_trained_exported_proved_and_reported(task, file, tmp_path, integers_first):
    out, int8 = tmp_path / "run", ("export.precision=int8",) if task == "regression" else ()
    report = run(recipe_of(file, task, "method.baseline=true", *int8), out, timed=False)
    key, least = HEADLINES[task]
    for part in ("dense", "model"):
        assert report[part]["headline"] == key
        assert report[part]["figures"][key] > least
        assert report[part]["parity"]["ok"] and not report[part]["parity"]["uncompared"]
    assert report["model"]["density"] < 0.6 and report["data"]["task"] == task
    found = onnx.load(out / "model.onnx")
    assert [output.name for output in found.graph.output] == OUTPUTS[task]
    assert {entry.key: entry.value for entry in found.metadata_props}["task"] == task

    data = load_data(f"{file}:data_{task}", seed=0, task=task)
    x, y = data.test.batch(torch.arange(len(data.test)))
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    values = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    outputs = {name: torch.from_numpy(np.asarray(value)) for name, value in zip(OUTPUTS[task], values, strict=True)}
    meaning = recipe_of(file, task).build_task()
    read = outputs if meaning.output is None else outputs[meaning.output]
    assert meaning.figures(read, y) == pytest.approx(report["model"]["figures"], abs=1e-4)
    if task == "regression":
        held = (y >= outputs["lower"][:, 0]) & (y <= outputs["upper"][:, 0])
        assert float(held.double().mean()) == pytest.approx(report["model"]["interval"]["coverage"])
        assert 0.75 < report["model"]["interval"]["coverage"] <= 1.0
        assert report["model"]["calibration"]["level"] == 0.9

    page, name = (out / "report.html").read_text(), key.replace("_", " ")
    assert f"validation {name}" in page and f"{report['model']['figures'][key]:.4f}" in page
    assert verdict(report, None)[0].startswith(f"{name}: ") and headline(report, None).rows[0][0] == name
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert f"val_{key}" in rows[-1]
    again = run(recipe_of(file, task, "method.baseline=true"), out, resume=True, timed=False)
    assert again["model"]["figures"] == report["model"]["figures"]
    if task == "regression":
        assert int8_sentence(report["model"]["int8"]) in page and "In int8" in page
    _check_int8(report["model"], out, data.test, meaning)


def _check_int8(model, out, samples, meaning):
    """The int8 file computes what is said of it, close to the program, with its head fitted again."""
    given = {"recipe": out / "recipe.toml", "precision": "int8", "overwrite": True}
    row = model.get("int8") or export_saved(out / "program.sparsify", out / "model-int8.onnx", **given)[1]
    key = model["headline"]
    assert "int8 dense" in row["layers"].values() and not row["refused"]
    assert row["head"].startswith(HEADS[meaning.name])
    assert row["fp32"]["figures"] == model["figures"]
    assert row["figures"][key] == pytest.approx(model["figures"][key], abs=0.03)
    assert row["figures"] != model["figures"] or meaning.name == "custom"
    outputs = run_file(out / "model-int8.onnx", samples)
    read = outputs if meaning.output is None else outputs[meaning.output]
    assert meaning.figures(read, samples.targets) == pytest.approx(row["figures"], abs=1e-6)
    if meaning.link == "none":
        assert row["agreement"] is None
    else:
        assert row["agreement"] > 0.97 and row["held_out"]["decisions"] >= row["held_out"]["samples"]
    if meaning.name == "regression":
        assert row["interval"]["coverage"] == pytest.approx(model["interval"]["coverage"], abs=0.05)
        before, after = (row["held_out"][f"coverage_{when}"] for when in ("before", "after"))
        assert 0.9 <= after <= 0.93 and abs(after - before) < 0.05, "the interval is fitted on these rows"


def test_through_the_command(file, tmp_path):
    given = (
        "--data",
        f"{file}:data_regression",
        "--set",
        "train.threads=1",
        "--set",
        "train.warmup=0",
        "--epochs",
        "6",
    )
    model, out = f"{file}:regression", tmp_path / "a"
    code, shown, err = command("run", model, *given, "--task", "regression", "--loss", "huber", "--out", out)
    assert code == 0, shown + err
    assert "r2" in shown and "rmse" in shown and 'kind = "regression"' in (out / "recipe.toml").read_text()
    code, shown, err = command("report", out)
    assert code == 0, shown + err
    again = ("export", out / "program.sparsify", "--recipe", out / "recipe.toml", "--out", tmp_path / "again.onnx")
    code, shown, err = command(*again)
    assert code == 0, shown + err
    told = {e.key: e.value for e in onnx.load(tmp_path / "again.onnx").metadata_props}
    assert told["task"] == "regression" and told["task_options"] == "regression{criterion=huber}"
    code, shown, err = command(
        "trace", model, "--input", "2x8", "--task", "regression", "--out", tmp_path / "p.sparsify"
    )
    assert code == 0, shown + err
    saved = ("export", tmp_path / "p.sparsify", "--data", f"{file}:data_regression", "--out", tmp_path / "p.onnx")
    code, shown, err = command(*saved)
    assert code == 0, shown + err
    assert {e.key: e.value for e in onnx.load(tmp_path / "p.onnx").metadata_props}["task"] == "regression"
    code, shown, err = command(*saved, "--task", "binary", "--overwrite")
    assert code == 2 and "task 'binary' reads the output 'logits', and 'net' returns prediction" in err
    code, shown, err = command("trace", model, "--input", "2x8", "--task", "auto")
    assert code == 2 and "Name the task, or give --data" in err


@pytest.mark.parametrize(
    ("task", "changed", "kind", "words"),
    [
        ("regression", {"data": "classification"}, None, ""),
        ("binary", {"data": "classification"}, DataError, "task 'binary' takes 0 or 1"),
        ("multilabel", {"model": "classification", "data": "dense"}, DataError, "task 'multilabel'"),
        ("dense", {"model": "regression"}, TraceError, "task 'dense' takes class numbers"),
        ("sequence", {"model": "dense"}, DataError, "task 'sequence' takes .*"),
        ("regression", {"loss": "mean"}, TaskError, "should be one of mse, mae, huber"),
        ("classification", {"loss": "mse"}, TaskError, r"own loss, found loss 'mse' \(--loss, .*: regression, custom"),
        ("binary", {"figures": "mine.py:f"}, TaskError, r"own figures, .*\(--figures, .*: custom"),
        ("regression", {"loss": "mse", "task_options": {"criterion": "huber"}}, RecipeError, "both say the same thing"),
        ("regression", {"label_smoothing": 0.1}, TaskError, "no labels to smooth"),
        ("regression", {"ood": ("photos",)}, RecipeError, "ood is for the task classification"),
        ("regression", {"method": "moon(rigl)"}, SparsifyError, "made for the task classification"),
        ("multilabel", {"method": "focal(rigl)"}, SparsifyError, "made for the task classification"),
        ("regresion", {}, TaskError, "Nearest: regression"),
        ("custom", {"loss": None}, TaskError, "needs a loss"),
        ("custom", {"loss": "broken"}, TraceError, "no_such_thing"),
        ("custom", {"loss": "missing"}, SparsifyError, "no callable 'missing'"),
        ("custom", {"loss": "flat"}, TrainingError, r"the loss of task 'custom\{.*' has no gradient"),
        ("custom", {"loss": "spoiling"}, TrainingError, "function of the loss .* writes into the output or the target"),
        ("custom", {"loss": "overwriting"}, TrainingError, "function of the loss .* writes into"),
        ("custom", {"figures": "spoiling_figures"}, TrainingError, "function of the figures .* writes into"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(task, changed, kind, words, file, tmp_path):
    base = task if task in HEADLINES else "regression"
    given = {"model": f"{file}:{base}", "data": f"{file}:data_{base}", **changed}
    for key, prefix in (("model", ""), ("data", "data_")):
        if key in changed:
            given[key] = f"{file}:{prefix}{changed[key]}"
    if task == "custom":
        given |= {key: f"{file}:{name}" for key, name in changed.items() if name is not None}
    if kind is None:
        run(recipe_of(file, task, **given), tmp_path / "run", timed=False)
        return
    with pytest.raises(kind, match=words):
        run(recipe_of(file, task, **given), tmp_path / "run", timed=False)
    assert not (tmp_path / "run").exists() or {path.name for path in (tmp_path / "run").iterdir()} <= {".lock"}


LENGTHS = """
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

def rows(lengths):
    return [torch.arange(length) % 5 + 1 for length in lengths]

def padded(rows):
    labels = pad_sequence([row * 2 % 5 for row in rows], batch_first=True, padding_value=-100)
    return {"ids": pad_sequence(rows, batch_first=True), "labels": labels}

def data():
    train = [12, 11, 60, *(4 + 7 * i % 15 for i in range(197))]
    return [DataLoader(rows(lengths), collate_fn=padded) for lengths in (train, [5, 19, 8, 3])]

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(6, 8), nn.Linear(8, 32), nn.Linear(32, 5)

    def forward(self, ids):
        return self.head(torch.relu(self.body(self.embedding(ids))))

class Channels(Net):
    def forward(self, ids):
        return super().forward(ids).transpose(1, 2)
"""


@pytest.mark.parametrize(("task", "model"), [("auto", "Net"), ("dense", "Channels")])
def test_rows_of_unlike_lengths_are_trained_and_measured(task, model, tmp_path):
    path = tmp_path / "lengths.py"
    path.write_text(LENGTHS)
    keys = {"task": task, "model": f"{path}:{model}", "data": f"{path}:data", "dynamic": "ids:1=T", "sparsity": 0.5}
    recipe = parse_recipe(None, keys | {"epochs": 6, "warmup": 0, "threads": 1, "optimizer": "adamw", "lr": 0.1})
    row = run(recipe, tmp_path / "run", timed=False)["model"]
    assert row["figures"]["accuracy"] == 1.0
