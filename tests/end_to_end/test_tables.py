"""A CSV file through the command: what makes its rows inputs stands in the metrics and in the file, and new rows are answered alike."""

from __future__ import annotations

import csv
import json
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from sklearn.datasets import load_breast_cancer

from sparsify.loading import load_data
from sparsify.loading.columns import encode
from sparsify.runs.pairs import parse_pairs
from sparsify.runs.recipe import parse_recipe
from tests.end_to_end.commands import command
from tests.reports.test_usage import decisions, lines_of

MODEL = """
from torch import nn
def build(): return nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 2))
"""
RUN = (
    "--set",
    "data.test_holdout=0.2",
    "--set",
    "train.threads=1",
    "--set",
    "train.warmup=0",
    "--epochs",
    "8",
    "--sparsity",
    "0.5",
)


@pytest.fixture
def table(tmp_path):
    data: Any = load_breast_cancer()
    columns = dict(zip(map(str, data.feature_names), data.data.T.tolist(), strict=True))
    columns["size"] = ["large" if x > 14 else "small" for x in data.data[:, 0]]
    columns["diagnosis"] = [str(data.target_names[y]) for y in data.target]
    with (tmp_path / "tumours.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(columns)
        rows.writerows(zip(*columns.values(), strict=True))
    (tmp_path / "my_model.py").write_text(MODEL)
    return tmp_path / "tumours.csv", [
        dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
    ]


def test_a_table_is_trained_on_and_its_file_fed_with_new_rows(table, tmp_path):
    path, rows = table
    model = f"{tmp_path / 'my_model.py'}:build"
    code, out, err = command("trace", model, "--data", path, "--target", "diagnosis")
    assert code == 0 and "f32[N, 32]" in out, err
    code, out, err = command("run", model, "--data", path, "--target", "diagnosis", *RUN, "--out", tmp_path / "a")
    assert code == 0, out + err
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert metrics["model"]["accuracy"] > 0.9 and metrics["data"]["class_names"] == ["benign", "malignant"]
    file = onnx.load(tmp_path / "a" / "model.onnx")
    held = {entry.key: entry.value for entry in file.metadata_props}
    preparation = json.loads(held["preparation"])
    assert preparation == metrics["data"]["preparation"] and preparation["features"][-1]["categories"] == [
        "large",
        "small",
    ]
    saved = tmp_path / "a" / "program.sparsify"
    code, _, err = command("export", saved, "--data", path, "--out", tmp_path / "b.onnx")
    assert code == 2 and "Give --recipe, its recipe.toml, in place of --data" in " ".join(err.split())
    code, _, err = command("export", saved, "--recipe", tmp_path / "a" / "recipe.toml", "--out", tmp_path / "b.onnx")
    assert code == 0, err
    session = onnxruntime.InferenceSession(str(tmp_path / "a" / "model.onnx"))
    found = np.asarray(session.run(["logits"], {session.get_inputs()[0].name: encode(preparation, rows)})[0])
    right = found.argmax(1) == np.array([metrics["data"]["class_names"].index(row["diagnosis"]) for row in rows])
    assert right.mean() > 0.9
    [code] = lines_of(tmp_path / "a")
    assert decisions(tmp_path / "a", code).tolist() == found.argmax(1).tolist()


def test_columns_are_named_in_every_form(table, tmp_path):
    path, _ = table
    wanted = load_data(str(path), seed=0, target=["diagnosis"], ignore_columns=["size", "mean area"], test_holdout=0.2)
    assert wanted.example(2).shape == (2, 29)
    (tmp_path / "r.toml").write_text('[data]\ntarget = "diagnosis"\nignore_columns = ["size", "mean area"]\n')
    set_ = parse_pairs(["data.target=diagnosis", "data.ignore_columns=size, mean area"])
    for recipe in (parse_recipe(tmp_path / "r.toml", {}), parse_recipe(None, set_)):
        assert (recipe.target, recipe.ignore_columns) == (("diagnosis",), ("size", "mean area"))
    code, _, err = command("run", "--data", path, "--set", "data.test_holdout=0.2", "--out", tmp_path / "a")
    assert code == 2 and "is chosen as the target" in err.replace("\n", " ")
