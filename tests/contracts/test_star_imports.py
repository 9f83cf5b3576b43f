"""``__all__``: complete, and harmless to import with a star."""

from __future__ import annotations

import builtins
import importlib
import tomllib
import types
from typing import TypeVar

import pytest

from tests.docs.test_site import ROOT, public_modules

LEFT_OUT = {"sparsify.methods": {"set"}}
"""Public names that a star does not import, since they would shadow a builtin."""


def test_the_rooms_say_what_they_offer():
    rooms = {"sparsify", *(f"sparsify.{room}" for room in ("methods", "passes", "tasks", "heads", "exporters"))}
    assert rooms <= public_modules().keys()


@pytest.mark.parametrize("module", public_modules())
def test_a_star_imports_what_is_public_and_shadows_no_builtin(module):
    names: dict[str, object] = {}
    exec(f"from {module} import *", names)
    del names["__builtins__"]
    room = importlib.import_module(module)
    assert names.keys() == set(room.__all__)
    assert len(room.__all__) == len(set(room.__all__))
    assert not names.keys() & vars(builtins).keys()


@pytest.mark.parametrize("module", sorted(public_modules().keys() - {"sparsify"}))
def test_no_public_name_is_forgotten(module):
    """A package offers all that it imports or defines, another module the functions and classes that it defines."""
    room = importlib.import_module(module)
    offered = {
        name
        for name, value in vars(room).items()
        if not name.startswith("_") and not isinstance(value, (types.ModuleType, TypeVar))
        if hasattr(room, "__path__") or getattr(value, "__module__", "") == module
    }
    assert offered - set(room.__all__) == LEFT_OUT.get(module, set()), f"add them to __all__ in {module}"


def test_the_package_says_that_it_is_typed():
    """Type checkers read the annotations of an installed package only where it ships ``py.typed``."""
    assert (ROOT / "sparsify/py.typed").is_file()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "py.typed" in settings["package-data"]["sparsify"]
