"""The embedded job: what `sparsify run` does when it is given no model, no data and no recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparsify.runs.recipe import EMBEDDED, parse_recipe, with_embedded
from tests.end_to_end.commands import command

ROOT = Path(__file__).parents[2]


def test_the_recipe_file_is_the_embedded_job():
    assert parse_recipe(ROOT / "recipes" / "digits.toml", {}) == parse_recipe(None, with_embedded(None, {}))


@pytest.mark.parametrize(
    "given, embedded",
    [
        ({}, True),
        ({"model": None, "epochs": 3}, True),
        ({"model": "m.py:f"}, False),
        ({"data": "digits"}, False),
    ],
)
def test_options_override_its_keys(given, embedded):
    keys = with_embedded(None, given)
    assert keys == {**(EMBEDDED if embedded else {}), **{k: v for k, v in given.items() if v is not None}}
    assert with_embedded(Path("r.toml"), {}) == {}


def test_its_wide_layers_are_written_in_the_fast_form(tmp_path):
    code, shown, err = command(
        "run", "--method", "static", "--epochs", "1", "--set", "data.train_samples=256", "--out", tmp_path / "a"
    )
    assert code == 0, err
    assert "times as fast" in " ".join(shown.split())
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert list(metrics["model"]["forms"].values()).count("grouped") == 3
    assert metrics["model"]["bytes"] < metrics["dense"]["bytes"] / 8
    assert "digits_wide_cnn" in (tmp_path / "a" / "recipe.toml").read_text()
