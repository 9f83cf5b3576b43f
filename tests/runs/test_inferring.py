"""The task ``auto``: the one that fits data and model, written into the records; else a list of what would fit."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sparsify.errors import TaskError
from sparsify.runs.comparison import _with_task
from sparsify.runs.grid import parse_grid
from sparsify.runs.inferring import with_task
from sparsify.runs.pairs import parse_pairs
from sparsify.runs.recipe import parse_recipe
from sparsify.runs.workflow import run
from tests.end_to_end.commands import command

MODEL = """
from torch import nn

def one(): return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
def three(): return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
"""


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 6)).astype("float32")
    amounts = 100 + 20 * x[:, 0]
    targets = {
        "regression": amounts,
        "three_amounts": np.stack([amounts, -amounts, 2 * amounts], 1),
        "binary": x[:, 0] > 0,
        "multilabel": x[:, :3] > 0,
        "classification": x[:, :3].argmax(1),
        "whole": 20 + 50 * (x[:, 0] > 0),
        "both": (x[:, :3] > 0).astype("float32"),
    }
    for name, y in targets.items():
        np.savez(tmp_path / f"{name}.npz", x_train=x[:200], y_train=y[:200], x_test=x[200:], y_test=y[200:])
    lines = [",".join(map(str, [*row, "abc"[k]])) for row, k in zip(x, targets["classification"], strict=True)]
    (tmp_path / "names.csv").write_text("\n".join(["a,b,c,d,e,f,kind", *lines]) + "\n")
    (tmp_path / "m.py").write_text(MODEL)
    return tmp_path


def recipe(folder, model, data, *pairs, **given):
    keys = {"model": f"{folder / 'm.py'}:{model}", "data": str(folder / data), "task": "auto", "threads": 1}
    return parse_recipe(None, keys | given | parse_pairs(pairs))


@pytest.mark.parametrize(
    ("model", "data", "task"),
    [
        ("one", "regression.npz", "regression"),
        ("three", "three_amounts.npz", "regression"),
        ("one", "binary.npz", "binary"),
        ("three", "multilabel.npz", "multilabel"),
        ("three", "classification.npz", "classification"),
    ],
)
def test_the_one_that_fits(folder, model, data, task):
    found = with_task(recipe(folder, model, data))
    assert found.task == task
    assert found == recipe(folder, model, data, task=task)
    assert with_task(found) is found


def test_categories_of_a_table_are_classes(folder):
    found = with_task(recipe(folder, "three", "names.csv", target=("kind",), test_holdout=0.2))
    assert found.task == "classification"


def test_whole_numbers_are_not_guessed_to_be_amounts(folder):
    with pytest.raises(
        TaskError, match=r"no task clearly fits .*'regression' would be possible, but is not chosen automatically"
    ):
        with_task(recipe(folder, "one", "whole.npz"))


def test_where_two_fit_both_are_named(folder):
    with pytest.raises(TaskError, match=r"the tasks 'multilabel' and 'regression' both fit .*--task multilabel"):
        with_task(recipe(folder, "three", "both.npz"))


def test_options_of_another_task_are_refused(folder):
    with pytest.raises(
        TaskError, match=r"task 'classification' brings its own loss, found loss 'huber' .*regression, custom"
    ):
        with_task(recipe(folder, "three", "classification.npz", loss="huber"))


def test_it_is_resolved_in_the_records_and_gives_the_same_bits(folder):
    given = {"optimizer": "adamw", "lr": 0.01}
    auto = run(recipe(folder, "three", "classification.npz", **given), folder / "a", timed=False)
    named = run(
        recipe(folder, "three", "classification.npz", task="classification", **given), folder / "b", timed=False
    )
    assert auto == named
    assert (folder / "a" / "recipe.toml").read_text() == (folder / "b" / "recipe.toml").read_text()
    assert run(recipe(folder, "three", "classification.npz", **given), folder / "a", resume=True, timed=False) == auto


def test_the_command_says_it(folder):
    given = ("--data", folder / "regression.npz", "--task", "auto", "--out", folder / "a", "--set", "train.threads=1")
    code, shown, err = command("run", f"{folder / 'm.py'}:one", *given)
    assert code == 0, shown + err
    assert "task: regression, the one that fits the data and the model" in shown
    assert json.loads((folder / "a" / "metrics.json").read_text())["data"]["task"] == "regression"
    assert 'kind = "regression"' in (folder / "a" / "recipe.toml").read_text()
    given = ("--data", folder / "whole.npz", "--task", "auto", "--out", folder / "b")
    code, shown, err = command("run", f"{folder / 'm.py'}:one", *given)
    assert code == 2 and "--task regression" in " ".join((shown + err).split())
    assert not (folder / "b").exists()


def test_the_rows_of_a_grid_share_it(folder):
    path = folder / "grid.toml"
    path.write_text(
        f"[model]\nsource = '{folder / 'm.py'}:one'\n[data]\nsource = '{folder / 'regression.npz'}'\n[task]\nkind = 'auto'\n"
        "[grid]\nmethods = ['gmp']\nsparsities = [0.5]\nseeds = [0]\n"
    )
    grid = _with_task(parse_grid(path), None)
    assert grid.common["task"] == "regression" and {cell.recipe.task for cell in grid.cells()} == {"regression"}
