"""The command loads torch and matplotlib when it needs them; the defaults it shows are those of a recipe."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import sparsify
import sparsify.cli as cli
from sparsify.recipe import Recipe

LOADED = """
import sys, sparsify.cli
sys.argv = ["sparsify", *{arguments!r}]
try:
    sparsify.cli.app()
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", *sorted({{"torch", "matplotlib", "onnx", "onnxruntime"}} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [(["--help"], "bench"), (["--version"], f"sparsify {sparsify.__version__}"), (["export", "--help"], "--precision")],
)
def test_help_and_version_load_no_torch_and_no_matplotlib(arguments, shown):
    code = LOADED.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_a_command_without_a_report_loads_no_matplotlib():
    code = LOADED.format(arguments=["methods"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: onnx onnxruntime torch"


def test_the_defaults_that_the_help_shows_are_those_of_a_recipe():
    recipe: Any = Recipe()
    assert {key: str(getattr(recipe, key)) for key in cli.DEFAULTS} == cli.DEFAULTS


def test_the_help_of_a_run_lists_the_keys_without_an_option(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sparsify", "run", "--help"])
    with pytest.raises(SystemExit):
        cli.app()
    shown = capsys.readouterr().out
    assert "Keys for --set" in shown and "holdout=" in shown and "epochs=" not in shown


def test_public_names_are_listed_and_no_others_are_there():
    assert all(hasattr(sparsify, name) for name in sparsify.__all__)
    assert set(sparsify.__all__) <= set(dir(sparsify))
    with pytest.raises(AttributeError, match="no attribute 'atach'"):
        getattr(sparsify, "atach")  # ruff: ignore[get-attr-with-constant]
