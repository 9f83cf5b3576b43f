"""kill -9 at random moments of a run, from the first import to the last files, then resume: the same bytes as an unbroken run.

A moment is a file of the run that has just appeared, and a short time after it, so that it does not depend on the speed of the machine.
What is killed is a process of its own; the unbroken run and those that go on are commands in this one.
``pytest tests/end_to_end/test_kill.py --kills 20`` tries more moments than the default three.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from sparsify.training import load_checkpoint
from tests.end_to_end.commands import command

MODEL = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(72, 10))
"""
OPTIONS = ["--data", "digits", "--epochs", "3", "--baseline", "--set", "method.options.update_every=10"]
OPTIONS += ["--set", "train.checkpoint_every=5", "--set", "train.threads=1"]
SAME = (
    "model.onnx",
    "dense.onnx",
    "metrics.json",
    "history.jsonl",
    "recipe.toml",
    "program.sparsify",
    "dense/history.jsonl",
)


ORDER = ("", "recipe.toml", "dense/checkpoint.pt", "dense.onnx", "checkpoint.pt", "program.sparsify", "model.onnx")
"""What appears in the folder, in this order; the first stands for the start of the process."""
SECONDS = 120


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.py"
    path.write_text(MODEL)
    return f"{path}:build"


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """The folder of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert command("run", model, "--out", folder, *OPTIONS)[0] == 0
    return folder


def pytest_generate_tests(metafunc):
    if "after" in metafunc.fixturenames:
        rng = random.Random(23)
        count = metafunc.config.getoption("--kills")
        places = [ORDER[int(len(ORDER) * (index + rng.random()) / count)] for index in range(count)]
        cases = [(after, rng.uniform(0.0, 0.2)) for after in places]
        ids = [f"{after or 'start'}+{delay:.2f}" for after, delay in cases]
        metafunc.parametrize(("after", "delay"), cases, ids=ids)


def test_a_killed_run_resumes_to_the_same_bytes(model, whole, tmp_path, after, delay):
    folder = tmp_path / "run"
    words = [sys.executable, "-m", "sparsify", "run", model, "--out", str(folder), *OPTIONS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    end = time.monotonic() + SECONDS
    while after and not (folder / after).exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it was still at work"
    for checkpoint in tmp_path.rglob("checkpoint.pt"):
        assert load_checkpoint(checkpoint)["trainer"]["steps"] > 0
    code, _, err = command("run", model, "--out", folder, *OPTIONS, "--resume")
    assert code == 0, err
    for name in SAME:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert (folder / "report.html").exists() and not list(tmp_path.rglob("*.unfinished"))
