"""The command: the main job, resume after kill -9 to the same bytes, and mistakes that end with a message and exit code 2."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from sparsify.loading import digits_cnn
from tests.end_to_end.commands import command

FLAT = "lr=0.2"
SETTINGS = ("method.options.update_every=10", "train.checkpoint_every=5", "train.threads=1")
SHORT = ["--epochs", "3", *(part for pair in SETTINGS for part in ("--set", pair)), "--data", "digits"]
"""Without --data it would be the embedded job, which is larger."""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SECONDS = 120
"""More than any machine needs: a command that hangs ends its test."""


def sparsify(capsys, *arguments):
    """(exit code, standard output, standard error) of the command, in this process; nothing is written beside them."""
    code, out, err = command(*arguments)
    beside = capsys.readouterr()
    return code, out + beside.out, err + beside.err


def test_run_leaves_a_file_with_exactly_the_budget(capsys, tmp_path):
    code, out, err = sparsify(capsys, "run", "--out", tmp_path / "a", *SHORT, "--baseline")
    assert code == 0, err
    report = json.loads((tmp_path / "a" / "metrics.json").read_text())
    maskable = 32 * 9 + 64 * 32 * 9 + 1024 * 128 + 128 * 10
    assert report["model"]["maskable"] == maskable
    assert report["model"]["nonzeros"] == round(0.1 * maskable)
    weights = [numpy_helper.to_array(i) for i in onnx.load(tmp_path / "a" / "model.onnx").graph.initializer]
    assert sum(int(np.count_nonzero(w)) for w in weights if w.ndim >= 2) == round(0.1 * maskable)
    assert report["model"]["parity"]["ok"] and report["dense"]["maskable"] == report["dense"]["nonzeros"]
    assert "accuracy" in out and "gmp" in out
    assert (tmp_path / "a" / "recipe.toml").exists() and (tmp_path / "a" / "dense.onnx").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a short run, to be read; a test that changes it takes a copy."""
    out = tmp_path_factory.mktemp("finished") / "a"
    assert command("run", "--out", out, *SHORT)[0] == 0
    return out


def test_the_written_recipe_reproduces_the_run(capsys, tmp_path, finished):
    assert sparsify(capsys, "run", "--out", tmp_path / "b", "--recipe", finished / "recipe.toml")[0] == 0
    assert (finished / "model.onnx").read_bytes() == (tmp_path / "b" / "model.onnx").read_bytes()


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    words = [
        sys.executable,
        "-m",
        "sparsify",
        "run",
        "--out",
        str(tmp_path / "a"),
        *SHORT,
        "--set",
        "train.epochs=2000",
    ]
    process = subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    end = time.monotonic() + SECONDS
    while not (tmp_path / "a" / "checkpoint.pt").exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert "--resume" in " ".join(out.split())


def test_trace_and_opt(capsys, tmp_path):
    code, out, _ = sparsify(capsys, "trace", "--out", tmp_path / "p.sparsify")
    assert code == 0 and "aten.conv2d" in out
    pipeline = "insert-masks{density=0.1} | fold-masks"
    code, out, err = sparsify(
        capsys, "opt", tmp_path / "p.sparsify", pipeline, "--show", "diff", "--out", tmp_path / "q.sparsify"
    )
    assert code == 0 and "+    %apply_mask" in out and "insert-masks: 4 changed" in err
    assert (tmp_path / "q.sparsify").exists()


@pytest.mark.parametrize(("command", "word"), [("methods", "rigl"), ("passes", "fold-masks"), ("patterns", "nm:N:M")])
def test_lists(capsys, command, word):
    code, out, _ = sparsify(capsys, command)
    assert code == 0 and word in out


def arrays(**changes):
    rng = np.random.default_rng(0)
    base = {
        "x_train": rng.integers(0, 255, (40, 8, 8), dtype=np.uint8), "y_train": np.arange(40) % 10,
        "x_test": rng.integers(0, 255, (10, 8, 8), dtype=np.uint8), "y_test": np.arange(10),
    }  # fmt: skip
    return {key: value for key, value in {**base, **changes}.items() if value is not None}


DATA = {
    "no such data": (None, "there is no data file"),
    "missing key": (arrays(y_test=None), "lacks y_test"),
    "empty": (arrays(x_train=np.zeros((0, 8, 8), np.uint8), y_train=np.zeros(0, int)), "is empty"),
    "labels negative": (arrays(y_train=np.arange(40) % 10 - 1), "whole numbers from 0"),
    "labels float": (arrays(y_train=np.linspace(0, 1, 40)), "whole numbers from 0"),
    "label unseen in training": (arrays(y_test=np.arange(10) + 5), "never occurs in training"),
    "one class": (arrays(y_train=np.zeros(40, int), y_test=np.zeros(10, int)), "at least two classes"),
    "too many classes": (arrays(y_train=np.arange(40) % 20), "20 classes"),
    "nan": (arrays(x_train=np.full((40, 8, 8), np.nan, np.float32)), "NaN"),
    "lengths differ": (arrays(y_train=np.arange(30) % 10), "one target per sample"),
    "wrong rank": (arrays(x_train=np.zeros((40, 8, 8, 8, 3), np.float32)), "images are"),
    "shapes differ": (
        arrays(x_train=np.zeros((40, 8), np.float32)),
        "training inputs have shape [8], test inputs [1, 8, 8]",
    ),
    "text": (arrays(x_train=np.full((40, 8), "a")), "inputs should be numbers"),
    "infinity in one sample": (
        arrays(x_train=np.where(np.arange(40)[:, None, None] == 7, np.inf, np.ones((40, 8, 8))).astype(np.float32)),
        "first in sample 7",
    ),
    "torn image": (
        arrays(x_train=None, images_train=np.zeros(40, np.uint8), offsets_train=np.arange(41)),
        "images_train: image 0 cannot be decoded",
    ),
    "wrong offsets": (
        arrays(x_train=None, images_train=np.zeros(4, np.uint8), offsets_train=np.arange(41)),
        "offsets should increase",
    ),
    "wrong channels": (
        arrays(x_train=np.zeros((40, 8, 8, 3), np.uint8), x_test=np.zeros((10, 8, 8, 3), np.uint8)),
        "shape",
    ),
    "pickled": (arrays(x_train=np.array([{}] * 40, dtype=object)), "without unpickling"),
    "fewer samples than a batch": (arrays(), "batch of 64"),
}


@pytest.mark.parametrize("name", DATA)
def test_bad_data(capsys, tmp_path, name):
    content, message = DATA[name]
    if content is not None:
        np.savez(tmp_path / "d.npz", **content)
    refused(capsys, tmp_path, [*SHORT, "--data", str(tmp_path / "d.npz")], message)


OPTIONS = {
    "density 0": (["--sparsity", "1.0"], "less than 1"),
    "density 1": (["--sparsity", "0.0"], "greater than 0"),
    "density 1.2": (["--sparsity", "-0.2"], "greater than 0"),
    "density -0.1": (["--sparsity", "1.1"], "less than 1"),
    "unknown method": (["--method", "rigle"], "Nearest: rigl"),
    "unknown pattern": (["--pattern", "2:4"], "there is no pattern"),
    "pattern does not divide": (["--pattern", "nm:2:4", "--sparsity", "0.5"], "divisible by 4"),
    "unknown key": (["--set", "train.epoch=3"], "Nearest: train.epochs"),
    "a flat key": (["--set", FLAT], "belongs to a table: write train.lr"),
    "unknown method option": (["--set", "method.options.update_evry=3"], "Nearest: update_every"),
    "unknown wrapper": (["--method", "cgil(rigl)"], "Nearest: cigl"),
    "wrapper alone": (["--method", "cigl"], "write cigl(rigl)"),
    "parenthesis left open": (["--method", "cigl(rigl"], "cannot read the method"),
    "option of the wrong layer": (["--method", "cigl(rigl)", "--set", "method.options.rate=0.2"], "Nearest: cigl.rate"),
    "option of no layer": (["--method", "rigl", "--set", "method.options.cigl.rate=0.2"], "no layer 'cigl'"),
    "value, then a table": (
        ["--set", "method.options.cigl=3", "--set", "method.options.cigl.rate=0.2"],
        "was given a value before",
    ),
    "keys below a key": (["--set", "train.lr.base=0.2"], "only method.options and task.options have keys below them"),
    "averaging too early": (
        ["--method", "averaged(rigl)", "--set", "method.options.averaged.start_at=0.5"],
        "the topology still changes",
    ),
    "not key=value": (["--set", "epochs"], "key=value"),
    "bad type": (["--set", "train.lr=fast"], "valid number"),
    "zero epochs": (["--epochs", "0"], "greater than or equal to 1"),
    "keep-dense matches nothing": (["--set", "method.keep_dense=head.*"], "matches no weight"),
    "no such recipe": (["--recipe", "nowhere.toml"], "cannot read the recipe"),
    "no such file": (["nowhere.py:build"], "there is no file"),
    "no colon": (["model"], "file.py:factory"),
    "no such module": (["nowhere.at.all:build"], "importing nowhere.at.all failed"),
    "not a module": (["pathlib:Path"], "should return a torch.nn.Module"),
    "factory raises": (["math:sqrt"], "called without arguments"),
    "no such factory": (["math:nothing"], "has no callable"),
    "bad opset": (["--set", "export.opset=3"], "greater than or equal to 18, found 3"),
    "diverging": (["--set", "train.lr=1e30", "--set", "train.warmup=0"], "Lower lr"),
    "too sparse": (["--sparsity", "0.9999999"], "lowest density that works"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_bad_options(capsys, tmp_path, name):
    arguments, message = OPTIONS[name]
    positional = [a for a in arguments[:1] if not a.startswith("--")]
    refused(capsys, tmp_path, [*positional, *SHORT, *arguments[len(positional) :]], message)


def refused(capsys, tmp_path: Path, arguments, message):
    code, _, err = sparsify(capsys, "run", *arguments, "--out", tmp_path / "run")
    assert code == 2, err
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "model.onnx").exists() and not (tmp_path / "run" / "metrics.json").exists()


def pickled_module(path):
    torch.save(digits_cnn(), path)


def torn_archive(path):
    path.write_bytes(b"PK\x03\x04 torn")


def narrow_weights(path):
    state = digits_cnn().state_dict()
    torch.save({**state, "10.weight": state["10.weight"][:5].clone()}, path)


def nan_weights(path):
    torch.save({n: v / 0 * 0 if v.is_floating_point() else v for n, v in digits_cnn().state_dict().items()}, path)


def labelled(path, lowest):
    """32 images of 11 - lowest classes."""
    x, y = np.zeros((32, 1, 8, 8), np.float32), np.arange(32) % (11 - lowest) + lowest
    x[:, 0, 0, 0] = y
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)


FILES = {
    "pickled module as weights": ("--weights", "w.pt", pickled_module, "could run code. Save only the state dict"),
    "torn weights": ("--weights", "w.pt", torn_archive, "cannot be read as weights"),
    "torn safetensors": ("--weights", "w.safetensors", torn_archive, "cannot be read as weights"),
    "text as weights": ("--weights", "w.pt", lambda path: path.write_text("hello"), "w.pt"),
    "weights of another shape": ("--weights", "w.pt", narrow_weights, "10.weight is [5, 128], the model's [10, 128]"),
    "weights with NaN": ("--weights", "w.pt", nan_weights, "NaN or infinity in 0.weight"),
    "no weights": ("--weights", "none.pt", lambda path: None, "there is no file"),
    "list as weights": ("--weights", "w.pt", lambda path: torch.save([1, 2], path), "not a state dict"),
    "torn exported program": ("", "m.pt2", torn_archive, "is not a .pt2 archive"),
    "text as exported program": ("", "m.pt2", lambda path: path.write_text("hello"), "is not a .pt2 archive"),
    "not an exported program": ("", "none.pt2", lambda path: None, "there is no file"),
    "pickled module as model": ("", "m.pt", pickled_module, "may be a pickled module"),
    "empty folder as data": ("--data", "images", lambda path: path.mkdir(), "has no folder train/"),
    "no classes in a folder": (
        "--data", "images", lambda path: [(path / n).mkdir(parents=True) for n in ("train", "test")], "holds no folders",
    ),
    "text as data": ("--data", "d.npz", lambda path: path.write_text("hello"), "cannot be read as .npz"),
    "table without a target": ("--data", "d.csv", lambda path: path.write_text("a,b\n1,2\n"), "is chosen as the target"),
    "table as data": ("--data", "d.txt", lambda path: path.write_text("a,b\n1,2\n"), "a table whose name ends in .csv"),
    "labels from 1": ("--data", "d.npz", lambda path: labelled(path, 1), "numbered from 1, subtract it from every label"),
    "more classes than outputs": ("--data", "d.npz", lambda path: labelled(path, 0), "Widen the last layer"),
    "no data factory": ("--data", "none.py:data", lambda path: None, "there is no file"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_bad_files(capsys, tmp_path, name):
    option, file, write, message = FILES[name]
    write(tmp_path / file)
    refused(capsys, tmp_path, [*SHORT, *([option] if option else []), str(tmp_path / file)], message)


def test_two_runs_into_one_folder(capsys, tmp_path):
    (tmp_path / "a").mkdir()
    with (tmp_path / "a" / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        code, _, err = sparsify(capsys, "run", "--out", tmp_path / "a", *SHORT)
    assert code == 2 and "another run is using" in err
    assert [path.name for path in (tmp_path / "a").iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_made(capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    code, _, err = sparsify(capsys, "run", "--out", tmp_path / "file" / "run", *SHORT)
    assert code == 2 and "cannot write into" in err and "--out" in err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def full_disk():
    """A limit on the size of a file stands for the full disk: the write itself fails, at different artefacts by the limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [1_000, 500_000, 1_000_000])
def test_a_full_disk_ends_with_a_message_and_nothing_half_written(full_disk, tmp_path, limit):
    full_disk(limit)
    code, _, err = command("run", "--out", tmp_path / "a", *SHORT)
    full_disk(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert code == 2, err
    assert "Traceback" not in err and "sparsify: " in err
    assert not list((tmp_path / "a").rglob("*.unfinished"))
    for path in (tmp_path / "a").rglob("*.onnx"):
        onnx.checker.check_model(onnx.load(path))
    code, _, err = command("run", "--out", tmp_path / "a", *SHORT, "--resume")
    assert code == 0, err


def test_a_read_only_folder(tmp_path):
    if os.geteuid() == 0:
        prefix = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]
        if shutil.which("setpriv") is None:
            pytest.skip("root ignores permissions, and setpriv is not here to take that right away")
    else:
        prefix = []
    (tmp_path / "a").mkdir(mode=0o555)
    words = [*prefix, sys.executable, "-m", "sparsify", "run", "--out", str(tmp_path / "a" / "b"), *SHORT]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2 and "cannot write into" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and list((tmp_path / "a").iterdir()) == []


def test_a_folder_with_something_else_is_left_alone(capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    for extra in ([], ["--overwrite"]):
        code, _, err = sparsify(capsys, "run", "--out", tmp_path / "run", *SHORT, *extra)
        assert code == 2 and "--out" in err
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"


def test_a_damaged_checkpoint_and_another_recipe_are_refused(capsys, tmp_path, finished):
    shutil.copytree(finished, tmp_path / "a")
    code, _, err = sparsify(capsys, "run", "--out", tmp_path / "a", *SHORT, "--set", "train.seed=5", "--resume")
    assert code == 2 and "another recipe" in err
    (tmp_path / "a" / "checkpoint.pt").write_bytes(b"torn")
    code, _, err = sparsify(capsys, "run", "--out", tmp_path / "a", *SHORT, "--resume")
    assert code == 2 and "damaged" in err


def test_a_damaged_program_is_refused(capsys, tmp_path):
    (tmp_path / "p.sparsify").write_bytes(b"PK\x03\x04 torn")
    code, _, err = sparsify(capsys, "opt", tmp_path / "p.sparsify", "insert-masks")
    assert code == 2 and "damaged" in err


def test_export_bench_and_report_of_a_saved_program(capsys, tmp_path, finished):
    run = shutil.copytree(finished, tmp_path / "a")
    again = tmp_path / "again.onnx"
    code, out, err = sparsify(capsys, "export", run / "program.sparsify", "--out", again, "--storage", "sparse")
    assert code == 0 and "agrees with" in out, err
    whole = json.loads((run / "metrics.json").read_text())["model"]["model_density"]
    assert f"{100 * whole:.1f} % of all the model's weights" in " ".join(out.split())
    assert again.stat().st_size < (run / "model.onnx").stat().st_size / 2
    code, _, err = sparsify(capsys, "export", run / "program.sparsify", "--out", again)
    assert code == 2 and "--overwrite" in err
    figures = tmp_path / "figures.json"
    files = [run / "model.onnx", again, "--rounds", "10", "--batch", "2", "--json", figures]
    code, out, err = sparsify(capsys, "bench", *files)
    assert code == 0 and "against itself" in " ".join(out.split()), err
    assert [row["name"] for row in json.loads(figures.read_text())["timings"]] == [str(run / "model.onnx"), str(again)]
    (run / "report.html").unlink()
    assert sparsify(capsys, "report", run)[0] == 0 and (run / "report.html").exists()


@pytest.mark.parametrize(
    "arguments",
    [["bench", "none.onnx"], ["report", "none"], ["export", "none.sparsify"], ["bench", "none.onnx", "--shape", "x=0"]],
)
def test_mistakes_of_the_other_commands(capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    code, _, err = sparsify(capsys, *arguments)
    assert code == 2 and err.startswith("sparsify: ") and "Traceback" not in err


WITHOUT_TORCH = """
import sys
for name in ("torch", "sparsify", "onnx"):
    sys.modules[name] = None
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
outputs = session.run(None, {session.get_inputs()[0].name: numpy.zeros((3, 1, 8, 8), numpy.float32)})
names = [value.name for value in session.get_outputs()]
assert names == ["logits", "probabilities"], names
assert all(value.shape == (3, 10) for value in outputs) and numpy.allclose(outputs[1].sum(1), 1, atol=1e-6)
assert session.get_modelmeta().custom_metadata_map["method"] == "gmp"
"""


def test_the_file_runs_where_there_is_neither_torch_nor_sparsify(tmp_path, finished):
    words = [sys.executable, "-c", WITHOUT_TORCH, str(finished / "model.onnx")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
