"""`sparsify compare`: stopped by Ctrl-C, killed and resumed to the same bytes; cells that fail cost the others nothing; mistakes."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnxruntime
import pytest

from tests.end_to_end.commands import command
from tests.end_to_end.test_command import sparsify

MODEL = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
"""
GRID = """
[model]
source = "{folder}/model.py:build"

[train]
epochs = 8
checkpoint_every = 2

[method]
options = {{ update_every = 5 }}

[export]
heads = ["lac:0.8", "energy"]

[grid]
methods = ["rigl"]
sparsities = [0.8]
seeds = [0, 1]
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SECONDS = 120


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    (folder / "model.py").write_text(MODEL)
    (folder / "grid.toml").write_text(GRID.format(folder=folder))
    return folder / "grid.toml"


def start(recipe, out, *more):
    command = [sys.executable, "-m", "sparsify", "compare", str(recipe), "--out", str(out), "--cores", "2", *more]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    code, shown, err = command("compare", recipe, "--out", out, "--cores", "2")
    assert code == 0 and "leaked" not in err, err
    return out, shown


def await_files(process, out, pattern, count):
    """Wait until as many files match; the command is still at work then."""
    end = time.monotonic() + SECONDS
    while len(list(out.glob(pattern))) < count:
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.005)


def await_processes(out):
    """Wait until no process holds a cell's folder."""
    for lock in out.glob("cells/*/.lock"):
        with lock.open("w") as file:
            end = time.monotonic() + SECONDS
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    assert time.monotonic() < end, f"{lock} is still held"
                    time.sleep(0.02)


def test_a_grid_leaves_its_table_and_a_run_for_every_cell(whole):
    out, shown = whole
    content = json.loads((out / "compare.json").read_text())
    names = ["dense-seed-0", "dense-seed-1", "rigl-0.8-seed-0", "rigl-0.8-seed-1"]
    assert sorted(path.name for path in (out / "cells").iterdir()) == names
    dense, rigl = content["rows"]
    assert (dense["name"], rigl["name"], rigl["base"], rigl["n"], content["missing"]) == (
        "dense",
        "rigl",
        "dense",
        2,
        [],
    )
    measured = [json.loads((out / "cells" / name / "metrics.json").read_text())["model"] for name in names]
    differences = [measured[2 + seed]["accuracy"] - measured[seed]["accuracy"] for seed in (0, 1)]
    assert rigl["figures"]["accuracy"]["difference"]["mean"] == pytest.approx(sum(differences) / 2, abs=1e-12)
    assert rigl["figures"]["density"]["mean"] == pytest.approx(0.2, abs=1e-3)
    assert rigl["figures"]["evaluations"]["mean"] == measured[2]["counts"]["steps"]
    for seed in (0, 1):
        ours, theirs = (
            json.loads((out / "cells" / names[2 * index + seed] / "answers.json").read_text()) for index in (1, 0)
        )
        churn = sum(a != b for a, b in zip(ours["answers"]["model"], theirs["answers"]["model"], strict=True))
        figures = next(cell for cell in content["cells"] if (cell["name"], cell["seed"]) == ("rigl", seed))["figures"]
        assert figures["churn"] == pytest.approx(churn / len(ours["labels"])) and figures["max_excess_gap"] >= 0
    (population,) = content["exemplars"]
    assert (population["name"], population["seeds"], population["of_each"]) == ("rigl", 2, 1)
    assert "Answers beside dense models" in (out / "compare.html").read_text()
    history = [json.loads(line) for line in (out / "cells" / names[2] / "history.jsonl").read_text().splitlines()]
    assert history[-1]["step"] == measured[2]["counts"]["steps"] and history[-1]["evaluations"] == history[-1]["step"]
    assert {"prediction_set.coverage", "prediction_set.mean_size"} <= rigl["figures"].keys()
    session = onnxruntime.InferenceSession(out / "cells" / names[2] / "model.onnx")
    assert [value.name for value in session.get_outputs()] == ["logits", "probabilities", "prediction_set", "ood_score"]
    assert "rigl" in shown and "compare.html" in shown and "churn" in shown and "excess" in shown
    assert not (out / "cells" / names[0] / "latency.json").exists() and (out / "compare.html").exists()
    page = (out / "cells" / names[2] / "report.html").read_text()  # by a process of its own, where plots are drawn
    assert all(part.split("</svg>")[0].count("<path") > 5 for part in page.split("<svg")[1:]) and page.count("<svg") > 3


def test_stopped_killed_and_resumed_gives_the_same_bytes(recipe, whole, tmp_path):
    out = tmp_path / "out"
    process = start(recipe, out)
    await_files(process, out, "cells/*/checkpoint.pt", 1)
    process.send_signal(signal.SIGINT)
    shown, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, err
    assert "--resume" in " ".join(shown.split()) and "4 of 4 cells are left" in " ".join(shown.split())
    await_processes(out)

    process = start(recipe, out, "--resume")
    await_files(process, out, "cells/*/report.html", 1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    await_processes(out)  # the cells' processes end with the one that started them
    kept = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/report.html")}
    assert 0 < len(kept) < 4

    code, _, err = command("compare", recipe, "--out", out, "--cores", "2", "--resume")
    assert code == 0, err
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())  # finished cells were left alone
    for name in ("compare.json", "compare.md", "compare.html", "grid.toml"):
        assert (out / name).read_bytes() == (whole[0] / name).read_bytes(), name
    assert not list(out.rglob("*.unfinished"))


def test_a_finished_grid_is_shown_again_and_rebuilt_from_its_files(capsys, recipe, whole, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(whole[0], out)
    (out / "compare.html").unlink()
    code, shown, err = sparsify(capsys, "compare", recipe, "--out", out, "--resume")
    assert code == 0 and "rigl" in shown, err
    assert (out / "compare.html").read_bytes() == (whole[0] / "compare.html").read_bytes()
    (out / "compare.md").unlink()
    assert sparsify(capsys, "report", out)[0] == 0
    assert (out / "compare.md").read_bytes() == (whole[0] / "compare.md").read_bytes()


FAILING = """
import multiprocessing, os, signal

if multiprocessing.parent_process() is not None and multiprocessing.current_process().name != "rehearsal":
    os.kill(os.getpid(), signal.SIGKILL)
"""


def variants(text: str, folder: Path, *names: str) -> str:
    """The grid's text with a row per name, each a model of its own file, compared with the dense network."""
    text = text.replace("[0, 1]", "[0]").replace('["rigl"]', json.dumps(names))
    for name in names:
        text += f'\n[grid.variants.{name}]\nmethod.name = "rigl"\nmodel.source = "{folder}/{name}.py:build"\n'
    return text + "\n[grid.bases]\n" + "".join(f'{name} = "dense"\n' for name in names)


def test_a_model_that_is_not_there_is_named_before_any_cell_starts(capsys, recipe, tmp_path):
    (tmp_path / "grid.toml").write_text(variants(recipe.read_text(), tmp_path, "absent"))
    code, _, err = sparsify(capsys, "compare", tmp_path / "grid.toml", "--out", tmp_path / "out")
    err = " ".join(err.split())
    assert code == 2 and "1 of 2 cells cannot be run, so none was started. absent 0.8 seed 0: there is no file" in err
    assert not (tmp_path / "out").exists()


def test_a_cell_whose_process_dies_costs_the_others_nothing_and_is_tried_again(capsys, recipe, tmp_path):
    another_grid(tmp_path / "out")  # which --overwrite replaces
    (tmp_path / "crash.py").write_text(FAILING + MODEL)
    (tmp_path / "grid.toml").write_text(variants(recipe.read_text(), tmp_path, "crash"))
    options = ("--out", tmp_path / "out", "--set", "train.epochs=1", "--cores", "4")
    code, shown, err = sparsify(capsys, "compare", tmp_path / "grid.toml", *options, "--overwrite")
    err = " ".join(err.split())
    assert code == 1, err  # a process that died is nobody's mistake
    assert "crash 0.8 seed 0 failed: its process was ended by signal 9" in err and "Traceback" not in err
    assert "epochs = 1" in (tmp_path / "out" / "grid.toml").read_text()
    assert "With one seed" in (tmp_path / "out" / "compare.md").read_text()
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [row["name"] for row in content["rows"]] == ["dense"] and "dense" in shown
    assert [missing["cell"] for missing in content["missing"]] == ["crash 0.8 seed 0"]
    (tmp_path / "crash.py").write_text(MODEL)
    code, _, err = sparsify(capsys, "compare", tmp_path / "grid.toml", *options, "--resume")
    assert code == 0, err
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [row["name"] for row in content["rows"]] == ["dense", "crash"] and not content["missing"]


def another_grid(out: Path) -> None:
    out.mkdir()
    (out / "grid.toml").write_text("[train]\nepochs = 3\n")


def a_run(out: Path) -> None:
    out.mkdir()
    (out / "recipe.toml").write_text("[train]\nepochs = 3\n")


MISTAKES = {
    "unknown method": (["--set", "grid.methods=rigl,riggl"], None, "Nearest: rigl"),
    "seeds empty": (["--set", "grid.seeds="], None, "at least 1"),
    "a cell twice": (["--set", "grid.seeds=1,1"], None, "has 1 twice"),
    "unknown key": (["--set", "train.epoch=1"], None, "Nearest: train.epochs"),
    "key of the lists": (["--set", "train.seed=1"], None, "grid.seeds"),
    "more threads than cores": (["--set", "train.threads=3", "--cores", "2"], None, "takes 3 cores"),
    "workers count": (["--set", "train.workers=2", "--cores", "2"], None, "workers = 2"),
    "no data": (["--set", "data.source=nothing.npz"], None, "there is no data file"),
    "no model": (["--set", "model.source=nothing.py:build"], None, "there is no file"),
    "another grid": (["--resume"], another_grid, "started with another grid"),
    "a run's folder, resumed": (["--resume"], a_run, "holds no grid to go on with"),
    "a run's folder": (["--overwrite"], a_run, "has no grid.toml"),
    "not empty": ([], another_grid, "is not empty"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(capsys, recipe, tmp_path, name):
    arguments, prepare, message = MISTAKES[name]
    out = tmp_path / "out"
    if prepare:
        prepare(out)
    before = {path.name: path.read_bytes() for path in out.iterdir()} if prepare else {}
    code, _, err = sparsify(capsys, "compare", recipe, "--out", out, *arguments)
    assert code == 2 and message in " ".join(err.split()) and "Traceback" not in err, err
    assert not (out / "cells").exists()
    assert all((out / name).read_bytes() == content for name, content in before.items())


def test_a_recipe_without_a_grid_and_a_folder_without_one(capsys, tmp_path):
    (tmp_path / "run.toml").write_text("[train]\nepochs = 3\n")
    code, _, err = sparsify(capsys, "compare", tmp_path / "run.toml", "--out", tmp_path / "out")
    assert code == 2 and "has no [grid]" in err
    code, _, err = sparsify(capsys, "compare", tmp_path / "none.toml", "--out", tmp_path / "out")
    assert code == 2 and "cannot read the recipe" in err
    (tmp_path / "run.toml").write_text("[grid]\nmethods = ['rigl']\n")
    code, _, err = sparsify(capsys, "run", "--recipe", tmp_path / "run.toml", "--out", tmp_path / "out")
    assert code == 2 and "sparsify compare" in err


def test_two_commands_into_one_folder(capsys, recipe, tmp_path):
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        code, _, err = sparsify(capsys, "compare", recipe, "--out", tmp_path / "out")
    assert code == 2 and "is using" in err


def damaged(out):
    (out / "cells" / "rigl-0.8-seed-0" / "metrics.json").write_text("{torn")


def other_recipe(out):
    path = out / "cells" / "rigl-0.8-seed-0" / "metrics.json"
    path.write_text(path.read_text().replace('"recipe_hash": "', '"recipe_hash": "0'))


def other_data(out):
    path = out / "cells" / "rigl-0.8-seed-0" / "metrics.json"
    path.write_text(path.read_text().replace('"fingerprint": "', '"fingerprint": "0'))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damaged, "is damaged"),
        (other_recipe, "run of another recipe"),
        (other_data, "the data changed between two cells"),
    ],
)
def test_cells_that_do_not_fit_the_grid_are_refused(capsys, recipe, whole, tmp_path, damage, message):
    shutil.copytree(whole[0], tmp_path / "out")
    damage(tmp_path / "out")
    code, _, err = sparsify(capsys, "compare", recipe, "--out", tmp_path / "out", "--resume")
    assert code == 2 and message in " ".join(err.split()) and "Traceback" not in err, err
