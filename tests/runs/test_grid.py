"""Grids: which cells they hold, what each row is compared with, and every mistake in a grid's recipe."""

from __future__ import annotations

import pytest

from sparsify.errors import RecipeError
from sparsify.runs.grid import Grid, Lists, parse_grid, shared_options
from sparsify.runs.recipe import Recipe, parse_recipe


def written(tmp_path, text):
    path = tmp_path / "grid.toml"
    path.write_text(text)
    return path


def grid(tmp_path, text="", *pairs, head="[train]\nepochs = 2\n"):
    lists = '[grid]\nmethods = ["set", "rigl"]\nsparsities = [0.9, 0.95]\nseeds = [0, 1]\n'
    return parse_grid(written(tmp_path, f"{head}{lists}{text}"), pairs)


def test_the_cells_are_the_product_and_the_dense_baseline_once_a_seed(tmp_path):
    cells = grid(tmp_path).cells()
    assert [str(cell) for cell in cells] == [
        "dense seed 0", "set 0.9 seed 0", "set 0.95 seed 0", "rigl 0.9 seed 0", "rigl 0.95 seed 0",
        "dense seed 1", "set 0.9 seed 1", "set 0.95 seed 1", "rigl 0.9 seed 1", "rigl 0.95 seed 1",
    ]  # fmt: skip
    assert [cell.bases for cell in cells[:5]] == [(), *[("dense",)] * 4]
    last = cells[-1].recipe
    assert (last.method, last.sparsity, last.seed, last.epochs, last.threads) == ("rigl", 0.95, 1, 2, 1)
    assert cells[0].sparsity is None and cells[0].recipe.method == "dense"
    assert cells[3].folder == "rigl-0.9-seed-0"


def test_what_a_wrapper_wraps_is_in_the_grid_in_front_of_it():
    lists = Lists(methods=["cigl(agent(rigl))", "moon(set)", "rigl"], sparsities=[0.9], seeds=[0])
    found = Grid({}, lists)
    assert found.names() == ["dense", "rigl", "agent(rigl)", "cigl(agent(rigl))", "set", "moon(set)"]
    assert [found.bases(name) for name in found.names()] == [
        (), ("dense",), ("rigl",), ("agent(rigl)",), ("dense",), ("set",)
    ]  # fmt: skip


def test_a_variant_has_keys_of_its_own_and_is_compared_with_its_method(tmp_path):
    text = '[grid.variants.fan-in]\ntrain = { lr = 0.01 }\nmethod = { name = "rigl", options = { initial_scale = "fan-in" } }\n'
    found = grid(tmp_path, text, "grid.methods=fan-in", head="[method.options]\nupdate_every = 7\n")
    assert found.names() == ["dense", "rigl", "fan-in"] and found.bases("fan-in") == ("rigl",)
    rows = {cell.name: cell.recipe for cell in found.cells()}
    assert rows["fan-in"].method == "rigl" and (rows["fan-in"].lr, rows["rigl"].lr) == (0.01, Recipe().lr)
    assert rows["fan-in"].method_options == {"update_every": 7, "initial_scale": "fan-in"}


def test_bases_say_what_to_compare_with(tmp_path):
    found = grid(tmp_path, '[grid.bases]\nrigl = "static"\n')
    assert found.names() == ["dense", "set", "static", "rigl"] and found.bases("rigl") == ("static",)


def test_a_row_may_have_several_bases_and_each_is_in_the_grid(tmp_path):
    text = '[grid.bases]\n"cigl(rigl)" = ["rigl", "averaged(rigl)"]\n'
    found = grid(tmp_path, text, "grid.methods=cigl(rigl)")
    assert found.names() == ["dense", "rigl", "averaged(rigl)", "cigl(rigl)"]
    assert found.bases("cigl(rigl)") == ("rigl", "averaged(rigl)")
    assert parse_grid(written(tmp_path, found.to_toml())) == found
    with pytest.raises(RecipeError, match=r"grid\.bases\.rigl.*at least 1"):
        grid(tmp_path, "[grid.bases]\nrigl = []\n")


def test_options_go_to_the_methods_that_have_them(tmp_path):
    head = "[method.options]\nupdate_every = 7\n[method.options.set]\ndrop_fraction = 0.1\nupdate_every = 9\n"
    rows = {cell.name: cell.recipe.method_options for cell in grid(tmp_path, head=head).cells()}
    assert rows == {"dense": {}, "set": {"update_every": 9, "drop_fraction": 0.1}, "rigl": {"update_every": 7}}
    given = {"update_every": 7, "cigl": {"rate": 0.5}, "rigl": {"stop_at": 0.5}}
    assert shared_options(given, "cigl(rigl)") == {"update_every": 7, "stop_at": 0.5, "cigl": {"rate": 0.5}}
    assert shared_options(given, "static") == {}


def test_options_of_wrappers_come_from_the_file_the_pairs_and_the_variant(tmp_path):
    text = """
[grid.variants.rare]
method = { name = "moon(cigl(rigl))", options = { rigl = { update_every = 9 }, cigl = { start_at = 0.9 } } }
"""
    head = "[method.options]\nupdate_every = 7\n[method.options.cigl]\nrate = 0.2\naverage_every = 5\n"
    found = grid(tmp_path, text, "grid.methods=rare", "grid.seeds=0", "method.options.cigl.rate=0.3", head=head)
    assert found.names() == ["dense", "rigl", "cigl(rigl)", "moon(cigl(rigl))", "rare"]
    rows = {cell.name: cell.recipe.method_options for cell in found.cells()}
    cigl = {"rate": 0.3, "average_every": 5}
    assert rows["dense"] == {} and rows["rigl"] == {"update_every": 7}
    assert rows["cigl(rigl)"] == rows["moon(cigl(rigl))"] == {"update_every": 7, "cigl": cigl}
    assert rows["rare"] == {"update_every": 9, "cigl": {**cigl, "start_at": 0.9}}
    again = parse_grid(written(tmp_path, found.to_toml()))
    assert again == found and again.to_toml() == found.to_toml()


def test_pairs_override_keys_lists_and_options(tmp_path):
    pairs = (
        "grid.seeds=3, 4",
        "grid.sparsities=0.5",
        "grid.methods=rigl",
        "train.epochs=9",
        "method.options.update_every=5",
    )
    cells = grid(tmp_path, "", *pairs).cells()
    assert [str(cell) for cell in cells] == ["dense seed 3", "rigl 0.5 seed 3", "dense seed 4", "rigl 0.5 seed 4"]
    assert (cells[1].recipe.epochs, cells[1].recipe.method_options) == (9, {"update_every": 5})


def test_the_resolved_grid_is_read_back_unchanged(tmp_path):
    own = 'train = { lr = 0.001 }\nmethod = { name = "set", keep_dense = ["0.*"] }\n'
    text = f'[grid.bases]\nrigl = "set"\n[grid.variants."set, slow"]\n{own}'
    lists = '[grid]\nmethods = ["rigl", "set, slow"]\nsparsities = [0.9]\nseeds = [0]\n'
    found = parse_grid(written(tmp_path, f"[method.options]\nupdate_every = 5\n{lists}{text}"))
    again = parse_grid(written(tmp_path, found.to_toml()))
    assert again == found and again.to_toml() == found.to_toml()
    assert [cell.recipe.hash() for cell in again.cells()] == [cell.recipe.hash() for cell in found.cells()]


def test_who_teaches_in_a_grid(tmp_path):
    text = '[grid.bases]\ntaught = "set"\n[grid.variants.taught]\nmethod = { name = "distilled(set)", teacher = "t.sparsify" }\n'
    lists = '[grid]\nmethods = ["taught", "distilled(set)"]\nsparsities = [0.9]\nseeds = [0]\n'
    cells = parse_grid(written(tmp_path, lists + text)).cells()
    found = {cell.name: (cell.recipe.teacher, cell.recipe.baseline) for cell in cells}
    assert found == {
        "dense": (None, False), "set": (None, False), "taught": ("t.sparsify", False), "distilled(set)": (None, True)
    }  # fmt: skip


MISTAKES = {
    "no grid": ("[train]\nepochs = 2\n", "has no [grid]. It names methods, sparsities and seeds"),
    "grid is no table": ("grid = 3\n", "has no [grid]"),
    "unknown key": ("[train]\nepoch = 2\n[grid]\n", "there is no key 'train.epoch'. Nearest: train.epochs"),
    "a flat key": ("epochs = 2\n[grid]\n", "the recipe of a grid has its keys in tables: epochs is train.epochs"),
    "unknown key of the grid": ("[grid]\nmethod = ['rigl']\n", "[grid] has no key 'method'. Nearest: methods"),
    "a teacher of all rows": ("[method]\nteacher = 't.sparsify'\n[grid]\n", "no key 'method.teacher', but teacher: a key of the variants"),
    "the grid decides": ("[train]\nseed = 3\n[grid]\n", "has no key 'train.seed', but seeds: grid.seeds"),
    "a baseline": ("[method]\nbaseline = true\n[grid]\n", "the dense model is always in a grid"),
    "lists missing": ("[grid]\nmethods = ['rigl']\n", "grid.sparsities: Field required"),
    "no seeds": ("[grid]\nmethods = ['rigl']\nsparsities = [0.9]\nseeds = []\n", "grid.seeds: List should have at least 1"),
    "no methods": ("[grid]\nmethods = []\nsparsities = [0.9]\nseeds = [0]\n", "grid.methods: List should have at least 1"),
    "a text for a list": ("[grid]\nmethods = 'rigl'\nsparsities = [0.9]\nseeds = [0]\n", "grid.methods: Input should be"),
    "a seed below 0": ("[grid]\nmethods = ['rigl']\nsparsities = [0.9]\nseeds = [-1]\n", "grid.seeds.0: Input should be greater"),
    "half a seed": ("[grid]\nmethods = ['rigl']\nsparsities = [0.9]\nseeds = [0.5]\n", "grid.seeds.0: Input should be"),
    "sparsity 90": ("[grid]\nmethods = ['rigl']\nsparsities = [90]\nseeds = [0]\n", "grid.sparsities.0: Input should be less than 1"),
    "unknown method": ("[grid]\nmethods = ['set', 'riggl']\nsparsities = [0.9]\nseeds = [0]\n", "grid row 'riggl': there is no method"),
    "unknown wrapper": ("[grid]\nmethods = ['cigle(rigl)']\nsparsities = [0.9]\nseeds = [0]\n", "no wrapper 'cigle'. Nearest: cigl"),
    "nearest method": ("[grid]\nmethods = ['riggl']\nsparsities = [0.9]\nseeds = [0]\n", "Nearest: rigl"),
    "a method twice": ("[grid]\nmethods = ['set', 'set']\nsparsities = [0.9]\nseeds = [0]\n", "grid.methods has 'set' twice"),
    "a seed twice": ("[grid]\nmethods = ['set']\nsparsities = [0.9]\nseeds = [1, 1]\n", "grid.seeds has 1 twice"),
    "a sparsity twice": ("[grid]\nmethods = ['set']\nsparsities = [0.9, 0.90]\nseeds = [1]\n", "grid.sparsities has 0.9 twice"),
    "one cell under two names": (
        "[grid]\nmethods = ['set', 'mine']\nsparsities = [0.9]\nseeds = [1]\n[grid.variants.mine]\nmethod = { name = 'set' }\n",
        "two cells of the grid are the same run: set 0.9 seed 1 and mine 0.9 seed 1",
    ),
    "one folder of two cells": (
        "[grid]\nmethods = ['a b', 'a-b']\nsparsities = [0.9]\nseeds = [1]\n[grid.variants.'a b']\n"
        "method = { name = 'set' }\ntrain = { lr = 1 }\n"
        "[grid.variants.a-b]\nmethod = { name = 'set' }\ntrain = { lr = 2 }\n",
        "two cells of the grid are one folder",
    ),
    "pattern against sparsity": (
        "[method]\npattern = 'nm:2:4'\n[grid]\nmethods = ['set']\nsparsities = [0.9]\nseeds = [1]\n",
        "grid row 'set' at sparsity 0.9: method 'set': pattern nm:2:4 fixes the density",
    ),
    "an option of no method": (
        "[method.options]\nupdat_every = 3\n[grid]\nmethods = ['set']\nsparsities = [0.9]\nseeds = [1]\n",
        "has no key 'updat_every'. Nearest: update_every",
    ),
    "options no table": ("[method]\noptions = 3\n[grid]\nmethods = ['set']\nsparsities = [0.9]\nseeds = [1]\n", "should be a table"),
    "options of one method no table": (
        "[method.options]\nset = 3\n[grid]\nmethods = ['set']\nsparsities = [0.9]\nseeds = [1]\n",
        "[method.options.set] should be a table of options, found 3",
    ),
    "unknown method before its options": (
        "[method.options]\nupdate_every = 3\n[grid]\nmethods = ['riggl']\nsparsities = [0.9]\nseeds = [1]\n",
        "there is no method 'riggl'",
    ),
    "an option of another method": (
        "[method.options.set]\nreplaces_step = true\n[grid]\nmethods = ['set']\nsparsities = [0.9]\nseeds = [1]\n",
        "method 'set' has no option 'replaces_step'",
    ),
    "unknown key of a variant": (
        "[grid]\nmethods = ['mine']\nsparsities = [0.9]\nseeds = [1]\n[grid.variants.mine]\nmethod = { nam = 'set' }\n",
        "variant 'mine' of the grid: there is no key 'method.nam'. Nearest: method.name",
    ),
    "options of a variant no table": (
        "[grid]\nmethods = ['mine']\nsparsities = [0.9]\nseeds = [1]\n[grid.variants.mine]\nmethod = { options = 1 }\n",
        "method.options of variant 'mine' should be a table",
    ),
    "an unused variant": (
        "[grid]\nmethods = ['set']\nsparsities = [0.9]\nseeds = [1]\n[grid.variants.mine]\nmethod = { name = 'set' }\n",
        "grid.variants has 'mine', which is not a row",
    ),
    "dense as a variant": (
        "[grid]\nmethods = ['set']\nsparsities = [0.9]\nseeds = [1]\n[grid.variants.dense]\ntrain = { lr = 1.0 }\n",
        "'dense' is the baseline and cannot be a variant",
    ),
    "an unused base": (
        "[grid]\nmethods = ['set']\nsparsities = [0.9]\nseeds = [1]\n[grid.bases]\nrigl = 'set'\n",
        "grid.bases has 'rigl', which is not a row",
    ),
    "bases in a circle": (
        "[grid]\nmethods = ['set', 'rigl']\nsparsities = [0.9]\nseeds = [1]\n[grid.bases]\nrigl = 'set'\nset = 'rigl'\n",
        "circle: set < rigl < set",
    ),
    "not TOML": ("[grid\n", "is not TOML"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told(tmp_path, name):
    text, message = MISTAKES[name]
    with pytest.raises(RecipeError) as caught:
        parse_grid(written(tmp_path, text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("grid.seeds=a,b", "numbers separated by commas"),
        ("grid.seds=1", "should be grid.methods"),
        ("grid.seeds", "should be grid.methods"),
        ("grid.seeds=", "at least 1"),
        ("train.epochs", "key=value"),
        ("lr=0.1", r"the key 'lr' belongs to a table: write train\.lr\."),
        ("train.lr=fast", "valid number"),
    ],
)
def test_a_mistake_in_a_pair_is_told(tmp_path, pair, message):
    with pytest.raises(RecipeError, match=message):
        grid(tmp_path, "", pair)


def test_a_run_refuses_the_recipe_of_a_grid(tmp_path):
    with pytest.raises(RecipeError, match="sparsify compare"):
        parse_recipe(written(tmp_path, "[grid]\nmethods = ['set']\n"), {})


def test_all_rows_whose_recipe_does_not_hold_are_named(tmp_path):
    text = '[grid.variants.odd]\nmethod = { name = "set", pattern = "2:4" }\n[grid.variants.late]\n'
    text += 'method = { name = "set" }\ntrain = { lr = -1 }\n'
    with pytest.raises(RecipeError, match=r"'odd' at sparsity 0\.9.*'late' at sparsity 0\.9"):
        grid(tmp_path, text, "grid.methods=odd,late")
