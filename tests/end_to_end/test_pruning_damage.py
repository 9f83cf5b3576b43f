"""What pruning broke, from the command: with a baseline and without, for a yes/no task, and rebuilt from the folder."""

from __future__ import annotations

import json

import numpy as np

from sparsify.figures.damage import damage
from tests.end_to_end.commands import command
from tests.end_to_end.test_command import SHORT
from tests.end_to_end.test_distilled import model as model  # a fixture

YES_NO = """
import torch
from torch import nn
from sklearn.datasets import load_breast_cancer

x, y = load_breast_cancer(return_X_y=True)
x = torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32)
y = torch.tensor(y)

def data():
    return {"train": (x[:400], y[:400]), "test": (x[400:], y[400:])}

def build():
    return nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 1))
"""


def contents(folder):
    return (json.loads((folder / name).read_text()) for name in ("metrics.json", "answers.json"))


def test_with_a_baseline_classes_and_exemplars_are_told(model, tmp_path):
    out = tmp_path / "a"
    code, _, err = command("run", model, "--out", out, "--baseline", "--sparsity", "0.97", *SHORT)
    assert code == 0, err
    report, kept = contents(out)
    dense, sparse, labels = (np.array(v) for v in (kept["answers"]["dense"], kept["answers"]["model"], kept["labels"]))
    expected = damage(dense, sparse, labels, 10)
    found = report["damage"]
    assert found["churn"] == expected.churn == report["flips"]["changed"] / len(labels)
    assert found["max_excess_gap"] == expected.max_excess_gap and found["lost"] == report["flips"]["lost"] > 0
    shown = [row["sample"] for row in found["exemplars"]]
    assert sorted(map(str, shown)) == sorted(kept["pictures"]) and all(
        dense[i] == labels[i] != sparse[i] for i in shown
    )
    page = (out / "report.html").read_text()
    assert "What pruning broke" in page and page.count("data:image/png;base64,") == len(shown)
    (out / "answers.json").unlink()
    assert command("report", out)[0] == 0
    page = (out / "report.html").read_text()
    assert (
        "data:image/png" not in page and "probability lost, points" in page
    )  # the numbers of the samples in their place
    (out / "answers.json").write_text('{"labels": []}')
    code, _, err = command("report", out)
    assert code == 2 and "answers.json is not what a run of this version leaves" in " ".join(err.split())


def test_without_a_baseline_only_the_answers_are_kept(model, tmp_path):
    out = tmp_path / "b"
    code, _, err = command("run", model, "--out", out, *SHORT)
    assert code == 0, err
    report, kept = contents(out)
    assert "damage" not in report and kept["answers"].keys() == {"model"} and kept["pictures"] == {}
    page = (out / "report.html").read_text()
    assert "What pruning broke" not in page and "Accuracy by class" in page


def test_a_yes_no_task_has_two_classes(tmp_path):
    path, out = tmp_path / "mine.py", tmp_path / "c"
    path.write_text(YES_NO)
    options = ("--task", "binary", "--baseline", "--sparsity", "0.9", "--epochs", "3", "--set", "train.threads=1")
    code, _, err = command("run", f"{path}:build", "--data", f"{path}:data", "--out", out, *options)
    assert code == 0, err
    report, kept = contents(out)
    assert len(report["damage"]["classes"]) == 2 and {*kept["labels"]} == {0, 1} and kept["pictures"] == {}
    assert "What pruning broke" in (out / "report.html").read_text()
