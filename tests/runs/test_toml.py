"""TOML is written as `read_toml` reads it, whatever text a path or a key holds."""

from __future__ import annotations

import pytest

from sparsify.runs.recipe import parse_recipe
from sparsify.runs.toml import read_toml, to_toml

VALUES = {
    "name": "a \"quoted\" \\ path with 'both', é and 😀", "odd": {"a key with 😀 and .": [1, 2.5e16, True, "x"]}, "list": ("a", "b"),
    "rows": [{"density": 0.1}],
}  # fmt: skip


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(to_toml(VALUES), encoding="utf-8")
    assert read_toml(path) == {**VALUES, "list": ["a", "b"]}


def test_none_and_empty_tables_are_left_out():
    assert to_toml({"a": None, "b": {}, "c": {"d": {"e": None}}, "f": 1}) == "f = 1\n"


@pytest.mark.parametrize("key", ["model", "data"])
def test_a_recipe_with_a_path_beyond_the_basic_plane_is_read_back(key, tmp_path):
    recipe = parse_recipe(None, {key: "models/🦊.py:build"})
    (tmp_path / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
    assert parse_recipe(tmp_path / "recipe.toml", {}) == recipe
