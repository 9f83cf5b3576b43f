"""`sparsify export`, `bench` and `report` on what a user has: a program of their own loop, files of several tools, a folder."""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import typer
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import sparsify as sp
from sparsify.cli import app
from sparsify.reports import parse_shapes
from sparsify.runs.pairs import parse_pairs
from sparsify.terminal.lists import LISTS
from tests.cases import CASES, digits
from tests.end_to_end.test_command import sparsify


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A program of the user's own loop, saved; and what it says of 20 digits."""
    x, y = digits(200)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    program = sp.trace(model, (x[:2],))
    trainer = sp.attach(sp.methods.rigl(density=0.2, update_every=5), program, optimizer, total_steps=20)
    for step in range(20):
        rows = slice(step * 10, step * 10 + 10)
        nn.functional.cross_entropy(program(x[rows]), y[rows]).backward()
        trainer.step()
        optimizer.zero_grad()
    path = tmp_path_factory.mktemp("own") / "mine.sparsify"
    program.eval().save(path)
    with torch.no_grad():
        return path, program.costs().active, x[:20], program(x[:20]).numpy()


def test_a_program_of_ones_own_loop_is_exported(capsys, tmp_path, own):
    path, active, x, expected = own
    code, out, err = sparsify(capsys, "export", path, "--out", tmp_path / "m.onnx", "--opset", "18")
    assert code == 0, err
    assert "agrees with the program" in " ".join(out.split()) and "at batch 1 and 64" in " ".join(out.split())
    model = onnx.load(tmp_path / "m.onnx")
    assert model.opset_import[0].version == 18
    weights = [numpy_helper.to_array(i) for i in model.graph.initializer]
    assert sum(int(np.count_nonzero(w)) for w in weights if w.ndim >= 2) == active
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    produced = session.run(["logits"], {session.get_inputs()[0].name: x.numpy()})[0]
    np.testing.assert_allclose(produced, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_file_is_replaced_only_when_asked(capsys, tmp_path, own):
    (tmp_path / "m.onnx").write_text("mine")
    code, _, err = sparsify(capsys, "export", own[0], "--out", tmp_path / "m.onnx")
    assert code == 2 and "--overwrite" in err and (tmp_path / "m.onnx").read_text() == "mine"
    code, out, _ = sparsify(capsys, "export", own[0], "--out", tmp_path / "m.onnx", "--overwrite")
    assert code == 0 and f"{own[1]:,} of 5,192 masked weights not zero" in " ".join(out.split())
    onnx.checker.check_model(onnx.load(tmp_path / "m.onnx"))
    sp.Pipeline.parse("fold-masks")(sp.Program.load(own[0])).save(tmp_path / "folded.sparsify")
    code, out, _ = sparsify(capsys, "export", tmp_path / "folded.sparsify", "--out", tmp_path / "m.onnx", "--overwrite")
    assert code == 0 and "no weight has a mask; agrees" in " ".join(out.split()) and "100.0 %" not in out


def test_what_cannot_be_exported_is_said_and_nothing_is_left(capsys, tmp_path, own):
    two = next(case for case in CASES if len(case.args) == 2)
    sp.trace(two.build(), two.args).save(tmp_path / "two.sparsify")
    (tmp_path / "torn.sparsify").write_bytes(b"PK torn")
    rng = np.random.default_rng(0)
    for part in ("wide", "colour"):
        size = (40, 16, 16) if part == "wide" else (40, 8, 8, 3)
        images = rng.integers(0, 255, size, dtype=np.uint8)
        labels = np.arange(40) % 10
        np.savez(tmp_path / f"{part}.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    for arguments, message in (
        ([own[0], "--data", tmp_path / "wide.npz"], "traced with shape [N, 1, 8, 8], found [2, 1, 16, 16]"),
        ([own[0], "--data", tmp_path / "colour.npz"], "found [2, 3, 8, 8]"),
        ([own[0], "--data", "none.npz"], "there is no data file"),
        ([own[0], "--opset", "7"], "opset should be between 18"),
        ([own[0], "--storage", "zip"], "storage should be one of"),
        ([tmp_path / "two.sparsify"], "found 1 by position"),
        ([tmp_path / "torn.sparsify"], "damaged"),
    ):
        code, _, err = sparsify(capsys, "export", *arguments, "--out", tmp_path / "m.onnx")
        assert code == 2 and message in " ".join(err.split()) and "Traceback" not in err, err
    code, _, err = sparsify(capsys, "export", own[0], "--out", tmp_path)
    assert code == 2 and "is a folder" in err
    assert not (tmp_path / "m.onnx").exists()


def linear(path, *, width=64, name="x", domain="", first="N"):
    weight = np.random.default_rng(0).standard_normal((width, width)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul" if not domain else "Own", [name, "w"], ["y"], domain=domain)],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [first, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [first, width])],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", 20)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_the_figures_of_three_files(capsys, tmp_path):
    files = [linear(tmp_path / f"{name}.onnx") for name in "abc"]
    options = ["--batch", 4, "--rounds", 10, "--threads", 1, "--json", tmp_path / "out" / "f.json"]
    code, out, err = sparsify(capsys, "bench", *files, *options)
    assert code == 0 and "against itself" in " ".join(out.split()), err
    found = json.loads((tmp_path / "out" / "f.json").read_text())
    assert [row["name"] for row in found["timings"]] == [str(path) for path in files]
    assert (found["batch"], found["threads"], found["rounds"], found["inputs"]) == (4, 1, 10, {"x": [4, 64]})
    assert found["machine"].keys() >= {"processor", "cores", "system", "onnxruntime"}
    for row in found["timings"]:
        assert 0 < row["quartiles"][0] <= row["milliseconds"] <= row["quartiles"][1]
        assert row["interval"][0] <= row["speedup"] <= row["interval"][1]
        assert row["bytes"] == files[0].stat().st_size and row["nonzeros"] == row["values"] == 64 * 64


def test_what_cannot_be_timed_is_said(capsys, tmp_path):
    good = linear(tmp_path / "good.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    for arguments, message in (
        ([tmp_path / "text.onnx"], "cannot load"),
        ([good, tmp_path / "none.onnx"], "there is no file"),
        ([good, linear(tmp_path / "own.onnx", domain="mine")], "standard operators"),
        ([good, linear(tmp_path / "named.onnx", name="z")], "takes z; the inputs at hand are x"),
        ([good, linear(tmp_path / "wide.onnx", width=65)], "does not run on x [1, 64]"),
        ([linear(tmp_path / "fixed.onnx", first=3), "--batch", 8], "cannot be timed at batch 8"),
        ([good, "--shape", "x=0x3"], "should be name=1x3x224x224"),
        ([good, "--shape", "y=1x64"], "has no input 'y'"),
        ([good, good], "given twice"),
    ):
        code, _, err = sparsify(capsys, "bench", *arguments, "--rounds", 10)
        assert code == 2 and message in " ".join(err.split()) and "Traceback" not in err, (code, err)


def test_a_folder_that_is_no_run_is_said(capsys, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    code, _, err = sparsify(capsys, "report", tmp_path)
    assert code == 2 and str(tmp_path / "metrics.json") in " ".join(err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    code, _, err = sparsify(capsys, "report", tmp_path / "none")
    assert code == 2 and "there is no folder" in err


COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches_by_examples_that_parse(capsys, name):
    code, out, _ = sparsify(capsys, name, "--help")
    assert code == 0 and COMMANDS[name].help.splitlines()[0][:30] in " ".join(out.split())
    if name in LISTS:
        return
    lines = re.findall(r"^\$ sparsify (\S+) ?(.*)$", COMMANDS[name].epilog.replace("\\[", "["), re.MULTILINE)
    assert lines and "Examples" in out
    for command, arguments in lines:
        assert command == name
        COMMANDS[name].make_context(name, [a or b for a, b in re.findall(r'"([^"]*)"|(\S+)', arguments)])


def test_every_recipe_key_is_in_the_help(capsys):
    _, out, _ = sparsify(capsys, "run", "--help")
    text = re.sub(r"[^\w=-]+", " ", out)
    for key in ("lr=0", "schedule=cosine", "calibrator=auto", "seed=0", "--sparsity", "--baseline", "--resume"):
        assert key in text, key


def test_texts_become_overrides_and_shapes():
    found = parse_pairs(
        ["train.lr=0.1", "method.keep-dense=a,b", "method.options.update_every=5", "method.options.regrow=true"]
    )
    assert found == {"lr": 0.1, "keep_dense": ("a", "b"), "method_options": {"update_every": 5, "regrow": True}}
    nested = parse_pairs(["method.options.weight-dropout.rate=0.2", "method.options.update-every=5"])
    assert nested == {"method_options": {"weight-dropout": {"rate": 0.2}, "update_every": 5}}
    assert parse_shapes(["x=1x3", "a=b=2"]) == {"x": (1, 3), "a=b": (2,)}
