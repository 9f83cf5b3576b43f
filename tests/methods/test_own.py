"""Methods of the user's own: found by reference, told from wrappers, nested, given options, and refused with what to do."""

from __future__ import annotations

import os

import pytest

from sparsify.errors import RecipeError
from sparsify.methods import build
from sparsify.methods.own import is_own, label
from sparsify.methods.registry import inner, layers, options
from sparsify.parts.allocation import uniform
from sparsify.runs.grid import parse_grid
from sparsify.runs.pairs import parse_pairs
from sparsify.runs.recipe import parse_recipe

OWN = """
import dataclasses
from sparsify.methods import Method

def still(*, density: float, note: str = "none", allocation=None, **rest) -> Method:
    slots = {"allocation": allocation} if allocation else {}
    return Method(name=f"still[{note}]", density=density, initial="random", **slots)

def named(base: Method, *, tag: str = "x") -> Method:
    return dataclasses.replace(base, name=f"{tag}({base.name})")

def fails(*, density: float):
    raise ValueError("too clever")

def gives_a_number(*, density: float):
    return 3

def exits():
    raise SystemExit(3)

def cigl(base: Method) -> Method:
    return base

not_callable = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_methods.py").write_text(OWN)
    return "own_methods.py"


def test_what_is_a_reference():
    assert [is_own(name) for name in ("rigl", "my.py:mest", "package.module:mest", "my.py")] == [
        False,
        True,
        True,
        True,
    ]
    assert (label("folder/my.py:mest"), label("rigl")) == ("mest", "rigl")


def test_a_method_a_wrapper_and_nestings(own):
    assert build(f"{own}:still", {"density": 0.1, "note": "a"}).name == "still[a]"
    assert build(f"{own}:named(rigl)", {"density": 0.1, "named": {"tag": "y"}}).name == "y(rigl)"
    text = f"cigl({own}:named({own}:still))"
    method = build(text, {"density": 0.1, "note": "b", "named": {"tag": "z"}, "cigl": {"rate": 0.2}})
    assert method.name == "cigl(z(still[b]))" and method.passes
    assert layers(text) == ("cigl", f"{own}:named", f"{own}:still") and inner(text) == f"{own}:named({own}:still)"
    again = build(f"{own}:named({own}:still)", {"still": {"density": 0.2, "allocation": "uniform"}})
    assert again.density == 0.2 and again.allocation is uniform
    assert list(options(f"{own}:still")) == ["density", "note", "allocation"] and list(options(f"{own}:named")) == [
        "tag"
    ]


def test_a_module_in_the_working_folder(own):
    assert build("own_methods:still", {"density": 0.1}).name == "still[none]"


def test_a_changed_file_is_read_again(own, tmp_path):
    before = (tmp_path / own).stat().st_mtime_ns
    assert build(f"{own}:still", {"density": 0.1}).name == "still[none]"
    (tmp_path / own).write_text(OWN.replace("still[", "calm["))
    os.utime(tmp_path / own, ns=(before + 10**9, before + 10**9))
    assert build(f"{own}:still", {"density": 0.1}).name == "calm[none]"


def test_a_recipe_keeps_the_reference_and_reads_it_back(own, tmp_path):
    pairs = ["method.options.note=c", "method.options.named.tag=w"]
    recipe = parse_recipe(None, {"method": f"{own}:named({own}:still)", **parse_pairs(pairs)})
    assert recipe.build_method().name == "w(still[c])" and recipe.build_method().density == 0.1
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    assert parse_recipe(tmp_path / "recipe.toml", {}) == recipe


def test_rows_of_a_grid(own, tmp_path):
    (tmp_path / "grid.toml").write_text(f"""
[method.options]
note = "d"
named = {{ tag = "v" }}
still = {{ density = 0.3 }}
[grid]
methods = ["{own}:named({own}:still)", "{own}:named(rigl)"]
sparsities = [0.8]
seeds = [0]
""")
    grid = parse_grid(tmp_path / "grid.toml")
    assert grid.names() == ["dense", f"{own}:still", f"{own}:named({own}:still)", "rigl", f"{own}:named(rigl)"]
    cells = {cell.name: cell for cell in grid.cells()}
    method = cells[f"{own}:named({own}:still)"].recipe.build_method()
    assert method.name == "v(still[d])" and method.density == 0.3
    assert cells[f"{own}:still"].folder == "own_methods.py-still-0.8-seed-0"


WRONG = {
    "no file": ("absent.py:mest", {}, "there is no file absent.py"),
    "no module": ("absent.module:mest", {}, "importing absent.module failed"),
    "no function": ("own_methods.py:stil", {}, "has no callable 'stil'.* Nearest: still"),
    "no callable": ("own_methods.py:not_callable", {}, "has no callable 'not_callable'"),
    "no name": ("own_methods.py", {}, "file.py:function"),
    "no such wrapper": ("own_methods.py:nmed(rigl)", {}, "Nearest: named"),
    "a method around another": ("own_methods.py:still(rigl)", {}, "does not take ``base`` first"),
    "a wrapper alone": ("own_methods.py:named", {}, r"write own_methods.py:named\(rigl\)"),
    "fails": (
        "own_methods.py:fails",
        {"density": 0.1},
        r"failed: ValueError: too clever \(in fails, .*own_methods.py, line \d+\). It was called with density=0.1",
    ),
    "fails in a nesting": ("cigl(own_methods.py:fails)", {"density": 0.1}, "failed: ValueError"),
    "exits": ("own_methods.py:exits", {}, r"failed: SystemExit: 3 \(.*line \d+\). It was called with nothing"),
    "returns a number": ("own_methods.py:gives_a_number", {"density": 0.1}, "returned int; it should return"),
    "unknown option": (
        "own_methods.py:still",
        {"density": 0.1, "ntoe": "a"},
        "'still' has no option 'ntoe'. Nearest: note",
    ),
    "missing option": ("own_methods.py:still", {}, "needs density"),
    "no such layer": ("own_methods.py:still", {"density": 0.1, "sill": {"note": "a"}}, "It has still"),
    "one name twice": ("cigl(own_methods.py:cigl(rigl))", {}, "'cigl' twice.* give one of the functions another name"),
    "unknown bare name": ("still", {}, "or write file.py:function"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests(own, name):
    text, given, message = WRONG[name]
    with pytest.raises(RecipeError, match=message):
        build(text, given)
