"""The command loads torch and matplotlib when it needs them; the defaults it shows are those of a recipe."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import pytest

import sparsify
import sparsify.cli as cli
from sparsify.errors import ExportWarning, LoadWarning, TrainingWarning
from sparsify.runs.recipe import Recipe
from sparsify.terminal.options import DEFAULTS
from tests.end_to_end.commands import command

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
    assert {key: str(getattr(recipe, key)) for key in DEFAULTS} == DEFAULTS


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


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["run", "--lr", "0.1"], "Write --set train.lr=0.1."),
        (["run", "--batch-size=32", "--epochs", "1"], "Write --set train.batch_size=32."),
        (["run", "--update-every", "20"], "Write --set method.options.update_every=20."),
        (["run", "--seed"], "Write --set train.seed=VALUE."),
        (["compare", "grid.toml", "--sparsity", "0.5"], "Write --set method.sparsity=0.5."),
        (["run", "--gamma", "0.2"], "Write --set method.options.agent.gamma=0.2."),
    ],
)
def test_an_option_that_is_a_key_is_answered_with_what_to_write(capsys, monkeypatch, arguments, advice):
    monkeypatch.setattr(sys, "argv", ["sparsify", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith(f"{advice}\n")


@pytest.mark.parametrize("arguments", [["run", "--bananas", "3"], ["run", "--epochs"], ["run", "--epochs", "many"]])
def test_other_mistakes_of_options_are_told_as_ever(capsys, monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["sparsify", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    shown = capsys.readouterr().err
    assert end.value.code == 2 and arguments[1] in shown and "--set" not in shown


@pytest.mark.parametrize("kind", [LoadWarning, TrainingWarning, ExportWarning])
def test_what_is_said_on_the_way_is_a_note_without_lines_of_code_and_is_said_once(kind, monkeypatch):
    def app():
        for message in ("first", "second", "first"):
            warnings.warn(message, kind, stacklevel=1)

    monkeypatch.setattr(cli, "app", app)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        _, _, err = command()
    assert err == "sparsify: note: first\nsparsify: note: second\n"
