"""Bad command lines and bad files: exit code 2, one message, no traceback, and nothing in the place where the output belongs."""

from __future__ import annotations

import json
import os
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import sparsify as sp
from sparsify.runs.recipe import parse_recipe
from sparsify.training.checkpoint import save_checkpoint
from tests.end_to_end.commands import command
from tests.end_to_end.test_saved_programs import linear

HUGE = "9" * 5000


def write(path, content=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def bomb(path, name, size):
    """A zip whose only entry unpacks to ``size`` zeros."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(name, "w", force_zip64=True) as entry,
    ):
        for _ in range(size >> 20):
            entry.write(bytes(1 << 20))


def header(shape):
    """An .npy file whose header promises more than follows."""
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of bad files, and a few good ones."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    sp.trace(model, (torch.rand(2, 1, 8, 8),), check=False).save(folder / "good.sparsify")
    linear(folder / "good.onnx")
    good = (folder / "good.sparsify").read_bytes()
    write(folder / "torn.sparsify", good[:-100])
    write(folder / "torn.onnx", (folder / "good.onnx").read_bytes()[:-100])
    write(folder / "empty")
    for name, text in {
        "deep.toml": "x = " + "[" * 20_000, "digits.toml": f"seed = {HUGE}", "binary.toml": b"\xff\xfe\x00", "nan.toml": "lr = nan",
        "wrong.toml": "epochs = 'many'", "table.toml": "[epochs]\nx = 1", "unknown.toml": "epoch = 3", "torn.toml": "epochs = ",
        "nogrid.toml": "epochs = 1", "emptygrid.toml": "[grid]\nmethods = []", "textgrid.toml": "grid = 3",
    }.items():  # fmt: skip
        write(folder / name, text)
    write(folder / "long.toml", "# " + "x" * (2 << 20))
    (folder / "zero.toml").symlink_to("/dev/zero")
    (folder / "zero.npz").symlink_to("/dev/zero")
    (folder / "zero.onnx").symlink_to("/dev/zero")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    with zipfile.ZipFile(folder / "huge.npz", "w") as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{name}.npy", header((2**40,)))
    with zipfile.ZipFile(folder / "negative.npz", "w") as archive:
        archive.writestr("x_train.npy", header((-1,)))
    np.savez(folder / "objects.npz", x_train=np.array([{}], dtype=object), y_train=np.zeros(1))
    np.savez(folder / "floats.npz", x_train=np.zeros((4, 8, 8)), y_train=np.array([0.5, 1, 0, 1]))
    np.savez(folder / "nan.npz", x_train=np.full((4, 8, 8), np.nan), y_train=np.array([0, 1, 0, 1]))
    for part in ("train", "test"):
        for name in ("a", "b"):
            folder.joinpath("bomb", part, name).mkdir(parents=True)
            folder.joinpath("bytes", part, name).mkdir(parents=True)
            Image.new("L", (8, 8)).save(folder / "bytes" / part / name / "1.png")
    Image.new("1", (30_000, 30_000)).save(folder / "bomb" / "train" / "a" / "1.png")
    os.mkdir(os.fsencode(folder / "bytes" / "train") + b"/\xff\xfe")
    os.symlink("/dev/zero", folder / "bytes" / "train" / "b" / "2.png")
    run = folder / "run"
    for name in ("metrics.json", "recipe.toml", "history.jsonl"):
        write(run / name, "{}")
    for name, text in {
        "deep": "[" * 10**5, "digits": f'{{"seed": {HUGE}}}', "nan": '{"seed": NaN}', "list": "[]", "bytes": b"\xff", "zero": None,
    }.items():  # fmt: skip
        if text is None:
            (folder / "runs" / name).mkdir(parents=True)
            (folder / "runs" / name / "metrics.json").symlink_to("/dev/zero")
        else:
            write(folder / "runs" / name / "metrics.json", text)
    write(folder / "grid" / "grid.toml", "[grid]\nmethods = ['set']\nsparsities = [0.9]\nseeds = [0]")
    write(folder / "grid" / "cells" / "set-0.9-0" / "failed.json", "[" * 1000)
    save_checkpoint(folder / "checkpoint.pt", {"key": "x"})
    write(folder / "mine.py", "def build():\n    raise ValueError('mine')\n\ndef none():\n    return 3\n")
    write(folder / "syntax.py", "def build(:\n")
    torch.save({"w": torch.zeros(3)}, folder / "w.pt")
    return folder


RUN = [
    *(["--set", pair] for pair in (
        "train.workers=100000", "train.threads=99999999", "train.threads=0", f"train.seed={HUGE}", "train.seed=99999999999999999999",
        "train.seed=-1", "data.image_size=1000000000", "train.epochs=0", "train.epochs=1000000000000", "train.batch_size=0",
        "train.batch_size=1000000000000000000000", "train.lr=nan", "train.lr=inf", "train.lr=-1", "train.lr=x",
        "train.weight_decay=inf", "train.momentum=1", "data.holdout=1.5", "data.holdout=nan", "export.batch=1000000000",
        "data.train_samples=999999999999", "export.opset=99", "train.device=warp", "train.device=cuda:99", "train.warmup=-3",
        "nonsense=1", "epochs", "=", "method.options.update_every=x", "method.options=3", "train.label_smoothing=2",
        "train.checkpoint_every=0", "train.early_stop=0", "train.clip_gradient_norm=nan", "model.source=a\x00b",
        "method.options.drop_fraction=nan", "train.seed.x=1", "train.precision=fp8",
    )),
    ["--data", "none.npz"], ["--data", "huge.npz"], ["--data", "negative.npz"], ["--data", "zero.npz"], ["--data", "pipe"],
    ["--data", "loop"], ["--data", "objects.npz"], ["--data", "floats.npz"], ["--data", "nan.npz"], ["--data", "bomb"], ["--data", "bytes"],
    ["--data", "empty"], ["--data", "x" * 5000], ["--data", "a\udcff.npz"], ["mine.py:build"], ["mine.py:none"], ["mine.py:absent"],
    ["syntax.py:build"], ["absent.py:build"], ["w.pt"], ["torn.sparsify"], ["empty"], ["--weights", "w.pt"], ["--weights", "pipe"],
    ["--weights", "empty"], ["--recipe", "deep.toml"], ["--recipe", "digits.toml"], ["--recipe", "binary.toml"], ["--recipe", "nan.toml"],
    ["--recipe", "wrong.toml"], ["--recipe", "table.toml"], ["--recipe", "unknown.toml"], ["--recipe", "torn.toml"],
    ["--recipe", "long.toml"], ["--recipe", "zero.toml"], ["--recipe", "pipe"], ["--recipe", "bomb"], ["--recipe", "loop"],
    *(["--task", "regression", "--set", f"task.options.{pair}"] for pair in ("delta=abc", "delta=true", "deviations=3", "deviations=1,2")),
    ["--task", "dense", "--set", "task.options.ignore=foo"],
    ["--sparsity", "1.5"], ["--sparsity", "nan"], ["--pattern", "nm:99999999999999999999:4"], ["--pattern", "[/x]"], ["--method", "[/x]"],
    ["--method", "rigl("], ["--method", "cigl(" * 500], ["--epochs", HUGE], ["--ood", "none.npz"], ["--ood", "huge.npz"],
]  # fmt: skip
OTHERS = [
    ["opt", "torn.sparsify", "fold-masks", "--out", "OUT"], ["opt", "zero.toml", "fold-masks", "--out", "OUT"],
    ["opt", "pipe", "fold-masks", "--out", "OUT"], ["opt", "good.sparsify", "insert-masks{density=nan}", "--out", "OUT"],
    ["opt", "good.sparsify", f"insert-masks{{density={HUGE}}}", "--out", "OUT"], ["opt", "good.sparsify", "[/x]", "--out", "OUT"],
    ["opt", "good.sparsify", "insert-masks{" * 1000, "--out", "OUT"], ["opt", "good.sparsify", "", "--out", "OUT"],
    ["opt", "good.sparsify", "insert-masks{pattern=block:99999999999x4 density=0.5}", "--out", "OUT"],
    ["export", "torn.sparsify", "--out", "OUT"], ["export", "good.sparsify", "--threads", "99999999", "--out", "OUT"],
    ["export", "good.sparsify", "--data", "huge.npz", "--out", "OUT"], ["export", "good.sparsify", "--recipe", "deep.toml", "--out", "OUT"],
    ["export", "good.sparsify", "--batch", "0", "--out", "OUT"], ["export", "good.sparsify", "--opset", "7", "--out", "OUT"],
    ["export", "good.sparsify", "--batch", "1000000000", "--out", "OUT"], ["export", "good.sparsify", "--out", "good.onnx"],
    ["bench", "good.onnx", "--batch", "100000000", "--json", "OUT"], ["bench", "good.onnx", "--threads", "99999999", "--json", "OUT"],
    ["bench", "good.onnx", "--rounds", "99999999999", "--json", "OUT"], ["bench", "torn.onnx", "--json", "OUT"],
    ["bench", "zero.onnx", "--json", "OUT"], ["bench", "pipe", "--json", "OUT"], ["bench", "empty", "--json", "OUT"],
    ["bench", "good.onnx", "--shape", f"x={HUGE}x64", "--json", "OUT"],
    ["bench", "good.onnx", "--shape", "x=999999999x64", "--json", "OUT"],
    ["bench", "good.onnx", "[/x].onnx", "--json", "OUT"],
    ["trace", "mine.py:build", "--out", "OUT"], ["trace", "--input", f"{HUGE}x3", "--out", "OUT"],
    ["trace", "--input", "99999x99999x99", "--out", "OUT"], ["trace", "--input", "x=", "--out", "OUT"],
    *(["report", f"runs/{name}"] for name in ("deep", "digits", "nan", "list", "bytes", "zero")),
    ["report", "run"], ["report", "grid"], ["report", "pipe"], ["report", "none"],
    ["compare", "deep.toml", "--out", "OUT"], ["compare", "nogrid.toml", "--out", "OUT"], ["compare", "emptygrid.toml", "--out", "OUT"],
    ["compare", "textgrid.toml", "--out", "OUT"], ["compare", "grid/grid.toml", "--set", "train.workers=100000", "--out", "OUT"],
    ["compare", "grid/grid.toml", "--set", "grid.seeds=99999999999999999999999", "--out", "OUT"], ["compare", "pipe", "--out", "OUT"],
    ["run", "--nonsense", "[/x]"], ["nonsense"], ["run", "--out", "empty"], ["run", "--out", "pipe/x"], ["run", "--out", "run"],
]  # fmt: skip
COMMANDS = [*(["run", *arguments, "--out", "OUT"] for arguments in RUN), *OTHERS]


def name(arguments):
    return " ".join(arguments)[:60].encode("ascii", "backslashreplace").decode().replace("\x00", "\\0")


@pytest.mark.parametrize("arguments", COMMANDS, ids=name)
def test_a_mistake_ends_with_one_message_and_leaves_nothing(place, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(place)
    monkeypatch.setenv("SPARSIFY_CACHE", "off")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # importing mine.py would leave __pycache__ beside it
    before = sorted(str(path) for path in place.rglob("*"))
    code, _, err = command(*(str(tmp_path / "out") if argument == "OUT" else argument for argument in arguments))
    assert code == 2, (code, err[-2000:])
    assert "Traceback" not in err and err.strip() and len(err) < 4000, err
    assert not (tmp_path / "out").exists() or {path.name for path in (tmp_path / "out").iterdir()} <= {".lock"}
    assert sorted(str(path) for path in place.rglob("*") if path.name != ".lock") == before


def test_they_are_many():
    assert len(COMMANDS) >= 77 and len({name(c) + str(len(str(c))) for c in COMMANDS}) > 0.95 * len(COMMANDS)


def test_a_place_with_brackets_is_a_place(tmp_path, place):
    out = tmp_path / "[/x] :smile:"
    code, shown, err = command("bench", place / "good.onnx", "--rounds", 10, "--json", out / "f.json")
    assert code == 0 and json.loads((out / "f.json").read_text())["rounds"] == 10, err
    code, shown, err = command("trace", "--out", out / "m.sparsify")
    assert code == 0 and (out / "m.sparsify").exists(), err
    code, shown, err = command("export", out / "m.sparsify", "--out", out / "m.onnx", "--form", "dense")
    assert code == 0 and "[/x] :smile:" in shown.replace("\n", ""), err


def test_a_checkpoint_of_something_else_is_refused_before_training(tmp_path, place):
    recipe = parse_recipe(None, {"epochs": 1, "threads": 1})
    write(tmp_path / "recipe.toml", recipe.to_toml())
    (tmp_path / "checkpoint.pt").write_bytes((place / "checkpoint.pt").read_bytes())
    code, _, err = command("run", "--recipe", tmp_path / "recipe.toml", "--out", tmp_path, "--resume")
    assert code == 2 and "belongs to another recipe" in " ".join(err.split()) and "Traceback" not in err
