"""Keys in tables: every field of a recipe has one place, and a key elsewhere is told its place."""

from __future__ import annotations

import dataclasses

import pytest

from sparsify.errors import RecipeError, SparsifyError, TaskError
from sparsify.runs.keys import TABLES, field_of, from_tables, spelt, to_tables
from sparsify.runs.recipe import Recipe, parse_recipe


def test_every_field_has_one_place() -> None:
    fields = [field for keys in TABLES.values() for field in keys.values()]
    assert sorted(fields) == sorted(field.name for field in dataclasses.fields(Recipe))  # type: ignore[arg-type]
    assert all(field_of(spelt(field)) == field for field in fields)


def test_tables_and_fields_are_inverses() -> None:
    tables = {
        "model": {"source": "m.py:f"},
        "method": {"name": "rigl", "options": {"update_every": 5}},
        "train": {"lr": 0.1},
    }
    assert from_tables(tables) == {
        "model": "m.py:f",
        "method": "rigl",
        "method_options": {"update_every": 5},
        "lr": 0.1,
    }
    assert to_tables(from_tables(tables)) == tables


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "epochs = 3\nlr = 0.1\n",
            "has its keys in tables: epochs is train.epochs, lr is train.lr. Write [train] and, below it, epochs.",
        ),
        ('model = "m.py:f"\n', "model is model.source"),
        ("method_options = { a = 1 }\n", "method_options is method.options"),
        (
            "nonsense = 1\n",
            "has no table 'nonsense'. Its tables are [model], [data], [task], [method], [train], [export]",
        ),
        ("[nonsense]\na = 1\n", "has no table 'nonsense'"),
        (
            "[[train]]\nepochs = 3\n",
            "one table [train], found [[train]], which begins a list of tables. Write [train] once",
        ),
        ("[[method]]\nname = 'set'\n", "one table [method], found [[method]]"),
        ("train = 3\n", "one table [train], found train = 3"),
        ("[train]\nepoch = 3\n", "there is no key 'train.epoch'. Nearest: train.epochs"),
        ("[data]\nlr = 3\n", "there is no key 'data.lr'. Nearest: train.lr"),
        ("[train]\nlr = -1.0\n", "invalid recipe: train.lr: Input should be greater than 0, found -1.0"),
        ("[method]\nsparsity = 90\n", "method.sparsity: Input should be less than 1"),
    ],
)
def test_a_key_in_the_wrong_place_is_told_its_own(tmp_path, text: str, message: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        parse_recipe(path, {})
    assert message in str(caught.value)


def test_the_names_that_a_key_may_have_are_told_with_auto() -> None:
    known = "auto, classification, binary, multilabel, regression, dense, sequence, custom"
    with pytest.raises(TaskError, match=f"there is no task 'foo'. All: {known}"):
        parse_recipe(None, {"task": "foo"}).build_task()
    with pytest.raises(TaskError, match=r"there is no task 'foo'\. All: auto"):
        parse_recipe(None, {"task": "foo", "loss": "mse"}).build_task()
    with pytest.raises(SparsifyError, match=r"no calibration head 'autp'\. Nearest: auto\. All: auto, temperature"):
        parse_recipe(None, {"calibrator": "autp"})
