"""A registry keeps names in order, and refuses what it cannot keep."""

from __future__ import annotations

import pytest

from sparsify.errors import RecipeError
from sparsify.registry import Registry


def test_a_name_is_found_registered_once_and_kept_in_order() -> None:
    registry: Registry[int] = Registry("number", RecipeError, {"two": 2})
    registry.register("one", 1)
    assert registry.register("two", registry["two"]) == 2
    assert list(registry) == ["two", "one"] and len(registry) == 2 and "one" in registry
    assert registry.find("one") == 1 and registry.origin("one") == ""


def test_a_taken_name_and_an_unknown_one_are_refused_with_what_is_there() -> None:
    registry: Registry[str] = Registry("method", RecipeError, {"rigl": "a", "gmp": "b"})
    with pytest.raises(
        RecipeError, match=r"the method name 'rigl' is taken by one of sparsify\. Choose another name\."
    ):
        registry.register("rigl", "c")
    with pytest.raises(RecipeError, match=r"there is no method 'rigI'\. Nearest: rigl\. All: rigl, gmp\."):
        registry.find("rigI")
    with pytest.raises(RecipeError, match="the name of a method should be text, found ''"):
        registry.register("", "c")


def test_an_equal_value_may_be_registered_again() -> None:
    registry: Registry[tuple[int, ...]] = Registry("pair", RecipeError, {"one": (1, 1)})
    first = registry["one"]
    registry.register("one", (*[1], 1))
    assert registry["one"] is first


def test_registering_is_a_decorator_too() -> None:
    registry: Registry[object] = Registry("method", RecipeError)

    @registry.registering("mine")
    def mine() -> None: ...

    assert registry["mine"] is mine


def test_what_is_registered_within_a_block_is_forgotten_after_it() -> None:
    registry: Registry[int] = Registry("number", RecipeError, {"two": 2})
    with registry.forgetting():
        registry.register("one", 1)
        assert "one" in registry
    assert list(registry) == ["two"]
