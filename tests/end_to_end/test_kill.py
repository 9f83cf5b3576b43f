"""kill -9 at random moments of a run, from the first import to the last file, then resume: the same bytes as an unbroken run.

``pytest tests/end_to_end/test_kill.py --kills 20`` tries more moments than the default three.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsify.training import load_checkpoint

OPTIONS = ["--epochs", "3", "--baseline", "--set", "method_options.update_every=10"]
OPTIONS += ["--set", "checkpoint_every=5", "--set", "threads=1"]
SAME = (
    "model.onnx",
    "dense.onnx",
    "metrics.json",
    "history.jsonl",
    "recipe.toml",
    "program.sparsify",
    "dense/history.jsonl",
)


def start(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sparsify", "run", "--out", str(folder), *OPTIONS, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder, seconds) of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    begin = time.monotonic()
    process = start(folder)
    _, err = process.communicate()
    assert process.returncode == 0, err.decode()
    return folder, time.monotonic() - begin


def pytest_generate_tests(metafunc):
    if "moment" in metafunc.fixturenames:
        rng = random.Random(0)
        count = metafunc.config.getoption("--kills")
        moments = [(index + rng.random()) / count for index in range(count)]
        metafunc.parametrize("moment", moments, ids=[f"{moment:.2f}" for moment in moments])


def test_a_killed_run_resumes_to_the_same_bytes(whole, tmp_path, moment):
    reference, seconds = whole
    process = start(tmp_path / "run")
    time.sleep(moment * seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for checkpoint in tmp_path.rglob("checkpoint.pt"):
        assert load_checkpoint(checkpoint)["trainer"]["steps"] > 0
    again = start(tmp_path / "run", "--resume")
    _, err = again.communicate()
    assert again.returncode == 0, err.decode()
    for name in SAME:
        assert (tmp_path / "run" / name).read_bytes() == (reference / name).read_bytes(), name
    assert (tmp_path / "run" / "report.html").exists() and not list(tmp_path.rglob("*.unfinished"))
