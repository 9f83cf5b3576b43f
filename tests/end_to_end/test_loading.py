"""The command on every form of model and data: it runs, resumes to the same bits, and refuses data that changed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import sparsify.cli as cli
from sparsify.errors import CheckpointError
from sparsify.runs.recipe import Recipe
from sparsify.runs.workflow import run
from tests.loading.conftest import export_to
from tests.loading.test_data import IMAGES, LABELS, encoded, write_folder, write_npz

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*exported in eval mode"),
    pytest.mark.filterwarnings("ignore:.*all training images are grey"),
]

MODEL = """
from torch import nn
def build(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
def colour(): return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 10))
def features(): return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
"""
DATA = """
from tests.loading.test_data import Noisy
def noisy(): return Noisy(0, 200), Noisy(200, 260)
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "my_model.py").write_text(MODEL)
    (tmp_path / "my_data.py").write_text(DATA)
    return tmp_path


def recipe(mine, **changes) -> Recipe:
    common = {
        "model": f"{mine / 'my_model.py'}:build", "data": str(mine / "d.npz"), "epochs": 2, "batch_size": 32, "threads": 1,
        "checkpoint_every": 3, "method_options": {"update_every": 2},
    }  # fmt: skip
    return Recipe(**{**common, **changes})


class Cut(Exception):
    pass


def cut_at(step):
    def on_step(part, row):
        if row["step"] == step:
            raise Cut

    return on_step


@pytest.mark.parametrize("workers", [0, 1])
def test_random_transforms_resume_in_the_middle_of_an_epoch_to_the_same_bits(mine, workers):
    made = recipe(mine, data=f"{mine / 'my_data.py'}:noisy", workers=workers)
    run(made, mine / "whole", timed=False)
    with pytest.raises(Cut):
        run(made, mine / "cut", on_step=cut_at(5))
    run(made, mine / "cut", resume=True, timed=False)
    for name in ("model.onnx", "metrics.json", "history.jsonl"):
        assert (mine / "whole" / name).read_bytes() == (mine / "cut" / name).read_bytes(), name


def test_workers_change_no_bit(mine):
    for workers in (0, 2):
        run(recipe(mine, data=f"{mine / 'my_data.py'}:noisy", workers=workers), mine / str(workers), timed=False)
    assert (mine / "0" / "history.jsonl").read_bytes() == (mine / "2" / "history.jsonl").read_bytes()


def test_data_that_changed_are_refused(mine):
    write_npz(mine / "d.npz")
    with pytest.raises(Cut):
        run(recipe(mine), mine / "a", on_step=cut_at(4))
    images = IMAGES[:200].copy()
    images[7, 3, 3] ^= 1
    write_npz(mine / "d.npz", x_train=images)
    with pytest.raises(CheckpointError, match="another recipe or other data"):
        run(recipe(mine), mine / "a", resume=True)
    write_npz(mine / "d.npz")
    run(recipe(mine), mine / "a", resume=True, timed=False)


def command(capsys, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["sparsify", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    caught = capsys.readouterr()
    return code, caught.err


QUICK = [
    "--epochs",
    "6",
    "--sparsity",
    "0.5",
    "--set",
    "train.lr=0.1",
    "--set",
    "train.warmup=0",
    "--set",
    "train.batch_size=32",
    "--set",
    "train.threads=1",
    "--set",
    "method.options.update_every=2",
]


def folder(mine):
    return ["build", "--data", write_folder(mine / "images")]


def resized(mine):
    return [
        "colour",
        "--data",
        write_folder(mine / "images", size=10, colour="RGB"),
        "--set",
        "data.image_size=8",
        "--set",
        "data.normalise=none",
    ]


def features(mine):
    x = IMAGES.reshape(-1, 64).astype(np.float32) / 255
    return ["features", "--data", write_npz(mine / "d.npz", x_train=x[:200], x_test=x[200:260])]


def packed(mine):
    blob, offsets = encoded(IMAGES[:200])
    parts = {"x_train": None, "x_test": None, "y_test": None, "images_train": blob, "offsets_train": offsets}
    return [
        "colour",
        "--data",
        write_npz(mine / "d.npz", **parts),
        "--set",
        "data.test_holdout=0.2",
        "--set",
        "data.channels=rgb",
    ]


@pytest.mark.parametrize("form", [folder, resized, features, packed])
def test_every_form_of_data_runs(capsys, mine, monkeypatch, form):
    monkeypatch.setenv("XDG_CACHE_HOME", str(mine / "cache"))
    factory, *options = form(mine)
    code, err = command(capsys, "run", f"{mine / 'my_model.py'}:{factory}", *options, *QUICK, "--out", mine / "a")
    assert code == 0, err
    found = json.loads((mine / "a" / "metrics.json").read_text())["data"]
    assert found["class_names"] == ([f"digit-{k}" for k in range(10)] if form in (folder, resized) else None)
    assert found["samples"]["test"] > 0


def test_an_exported_program_with_weights_runs(capsys, mine):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)).eval()
    path = export_to(mine / "m.pt2", model)
    torch.save(model.state_dict(), mine / "w.pt")
    code, err = command(
        capsys, "run", path, "--weights", mine / "w.pt", *QUICK, "--set", "train.lr=0.01", "--out", mine / "a"
    )
    assert code == 0, err


def test_training_starts_from_the_weights(mine):
    write_npz(mine / "d.npz")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    x, y = torch.tensor(IMAGES[:200]).float() / 255, torch.tensor(LABELS[:200])
    x = (x - x.mean()) / x.std(correction=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(30):
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(model.state_dict(), mine / "w.pt")
    options = {"method": "one-shot", "method_options": {}, "epochs": 1, "sparsity": 0.5, "lr": 1e-6}
    found = run(recipe(mine, weights=str(mine / "w.pt"), **options), mine / "a", timed=False)["model"]
    assert found["accuracy"] > 0.7, "which a learning rate of 1e-6 does not reach from anywhere else"


MISTAKES = {
    "a forged archive": (["m.pt2"], "is not a .pt2 archive"),
    "an ignored image size": (["--set", "data.image_size=8"], "image_size is for folders"),
    "an ignored test holdout": (["--set", "data.test_holdout=0.1"], "Leave test_holdout out"),
    "an unknown normalisation": (["--set", "data.normalise=maybe"], "'auto' or 'none'"),
    "fewer than no workers": (["--set", "train.workers=-1"], "greater than or equal to 0"),
    "a holdout that leaves nothing": (["--set", "data.holdout=0.999"], "leaves fewer than the 10 classes"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_with_exit_code_2(capsys, mine, monkeypatch, name):
    monkeypatch.chdir(mine)
    (mine / "m.pt2").write_bytes(b"PK")
    arguments, message = MISTAKES[name]
    code, err = command(capsys, "run", *arguments, *QUICK, "--out", mine / "a")
    assert code == 2 and message in " ".join(err.split()) and "Traceback" not in err, err
