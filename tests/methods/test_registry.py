"""Methods by name: options, and what is wrong with a request."""

from __future__ import annotations

import inspect

import pytest

from sparsify.errors import RecipeError
from sparsify.methods import METHODS, build
from sparsify.methods.registry import options
from sparsify.parts.allocation import lamp


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_built_from_its_name_and_bears_it(name):
    needed = {key: 0.25 for key, default in options(name).items() if default is inspect.Parameter.empty}
    method = build(name, needed)
    assert method.name == name
    assert (inspect.getdoc(METHODS[name]) or "").splitlines()[0].endswith((".", ").", ":")) or name == "dense"


def test_an_allocation_may_be_a_name():
    assert build("gmp", {"density": 0.5, "allocation": "lamp"}).allocation is lamp


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("rgl", {}, "Nearest: rigl"),
        ("rigl", {}, "needs density"),
        ("rigl", {"density": 0.1, "updat_every": 3}, "Nearest: update_every"),
        ("dense", {"density": 0.1}, "All: none"),
        ("gmp", {"density": 0.1, "allocation": "erl"}, "no allocation 'erl'"),
        ("rigl", {"density": 0.1, "drop_fraction": 1.5}, "between 0.0 and 1.0"),
    ],
)
def test_wrong_requests(name, given, message):
    with pytest.raises(RecipeError, match=message):
        build(name, given)
