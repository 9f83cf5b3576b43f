"""A method of the user's own from the command: trained, exported under its name, resumed, and refused with what to do."""

from __future__ import annotations

import json

import pytest

from tests.end_to_end.commands import command
from tests.end_to_end.test_command import SHORT

OWN = """
import dataclasses
from half_of import half
from sparsify.methods import Method, rigl

def calm(*, density: float, pattern: str = "unstructured", update_every: int = 100) -> Method:
    found = rigl(density=density, pattern=pattern, update_every=update_every, drop_fraction=half(0.2))
    return dataclasses.replace(found, name="calm")

def named(base: Method, *, tag: str) -> Method:
    return dataclasses.replace(base, name=f"{tag}({base.name})")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "half_of.py").write_text("def half(x): return x / 2\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_is_trained_exported_and_resumed(folder):
    options = ["--method", "cigl(own.py:named(own.py:calm))", "--set", "method.options.named.tag=mine", *SHORT]
    code, shown, err = command("run", "--out", "a", *options)
    assert code == 0, err
    assert "cigl(mine(calm))" in shown
    report = json.loads((folder / "a" / "metrics.json").read_text())["model"]
    assert report["method"] == "cigl(mine(calm))" and report["nonzeros"] == round(0.1 * report["maskable"])
    assert report["counts"]["rounds"] > 0, "update_every reached it"
    assert 'name = "cigl(own.py:named(own.py:calm))"' in (folder / "a" / "recipe.toml").read_text()
    before = (folder / "a" / "model.onnx").read_bytes()
    for name in ("model.onnx", "metrics.json", "report.html"):
        (folder / "a" / name).unlink()
    code, _, err = command("run", "--out", "a", "--recipe", "a/recipe.toml", "--resume")
    assert code == 0, err
    assert (folder / "a" / "model.onnx").read_bytes() == before


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("absent.py:calm", "there is no file absent.py"),
        ("own.py:clam", "Nearest: calm"),
        ("own.py:named", "write own.py:named(rigl)"),
        ("own.py:dataclasses", "has no callable 'dataclasses'"),
        ("own.py:half", "'own.py:half' needs x"),
    ],
)
def test_a_mistake_ends_with_a_message(folder, method, message):
    code, _, err = command("run", "--out", "a", "--method", method, *SHORT[:2])
    assert code == 2 and message in " ".join(err.split()) and "Traceback" not in err
    assert not (folder / "a").exists()
