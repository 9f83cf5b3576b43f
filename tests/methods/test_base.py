"""What a `Method` refuses."""

from __future__ import annotations

import dataclasses

import pytest

import sparsify as sp
from sparsify.errors import PatternError, RecipeError
from sparsify.methods.base import in_range, one_of


@pytest.mark.parametrize("density", [0.0, -0.1, 1.2, float("nan")])
def test_a_density_is_a_fraction(density):
    with pytest.raises(RecipeError, match=r"fraction in \(0, 1\]"):
        sp.methods.static_random(density=density)


def test_a_pattern_that_fixes_its_density_refuses_another():
    sp.methods.one_shot(density=0.5, pattern="nm:2:4")
    sp.methods.rigl(density=0.333, pattern="nm:1:3")  # 1/3 cannot be written
    with pytest.raises(RecipeError, match=r"fixes the density at 0\.5 \(sparsity 0\.5\), found 0\.1"):
        sp.methods.one_shot(density=0.1, pattern="nm:2:4")
    with pytest.raises(PatternError, match="no pattern"):
        sp.methods.rigl(density=0.1, pattern="2:4")


def test_a_tweaked_method_is_checked_again():
    with pytest.raises(RecipeError, match="initial_scale"):
        dataclasses.replace(sp.methods.rigl(density=0.1), initial_scale="fan-out")


def test_a_choice_names_what_may_be_chosen():
    assert one_of("a", ("a", "b"), "x") == "a"
    with pytest.raises(RecipeError, match="x should be a or b, found 'c'"):
        one_of("c", ("a", "b"), "x")


def test_ranges_include_their_ends():
    assert [in_range(value, 0, 1, "x") for value in (0, 1)] == [0, 1]
    with pytest.raises(RecipeError, match=r"x should be between 0 and 1, found 1\.01"):
        in_range(1.01, 0, 1, "x")
