"""Methods by name."""

from __future__ import annotations

import inspect

import pytest

from sparsify.errors import RecipeError
from sparsify.methods import METHODS, build
from sparsify.methods.registry import options
from sparsify.parts.allocation import uniform


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_named_as_it_is_registered_and_documents_its_options(name):
    required = {key: 0.5 for key, default in options(name).items() if default is inspect.Parameter.empty}
    assert build(name, required).name == name
    doc = inspect.getdoc(METHODS[name]) or ""
    missing = [key for key in options(name) if key not in doc.partition("Args:")[2]]
    assert missing == []


def test_an_allocation_may_be_a_name():
    assert build("rigl", {"density": 0.1, "allocation": "uniform"}).allocation is uniform


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("rigle", {}, "no method 'rigle'. Nearest: rigl"),
        ("rigl", {"density": 0.1, "updat_every": 5}, "no option 'updat_every'. Nearest: update_every"),
        ("rigl", {}, "needs density"),
        ("rigl", {"density": 0.1, "allocation": "fair"}, "no allocation 'fair'"),
        ("dense", {"density": 0.1}, "no option 'density'.*All: none"),
        ("rigl", {"density": 0.1, "drop_fraction": 1.5}, "drop_fraction should be between"),
    ],
)
def test_mistakes_are_named(name, given, message):
    with pytest.raises(RecipeError, match=message):
        build(name, given)
