"""What a `Method` refuses, and steps given as fractions."""

from __future__ import annotations

import dataclasses

import pytest

import sparsify as sp
from sparsify.errors import PatternError, RecipeError
from sparsify.methods.base import as_steps, in_range, one_of


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


@pytest.mark.parametrize(
    "method", [sp.methods.rigl, sp.methods.set, sp.methods.gmp, sp.methods.granet, sp.methods.itop]
)
@pytest.mark.parametrize("interval", [0, -1, 1.5])
def test_an_interval_that_is_none_is_refused(method, interval):
    with pytest.raises(RecipeError, match="update_every should be a number of steps"):
        method(density=0.1, update_every=interval).topology(100)


@pytest.mark.parametrize(
    ("value", "total", "expected"), [(30, 200, 30), (0.25, 200, 50), (1.0, 200, 200), (0.001, 200, 1)]
)
def test_steps_and_fractions(value, total, expected):
    assert as_steps(value, total, "stop_at") == expected


@pytest.mark.parametrize("value", [0, -3, 0.0, 1.5, float("nan")])
def test_neither_steps_nor_a_fraction(value):
    with pytest.raises(RecipeError, match="stop_at should be a number of steps"):
        as_steps(value, 200, "stop_at")


def test_ranges_include_their_ends():
    assert [in_range(value, 0, 1, "x") for value in (0, 1)] == [0, 1]
    with pytest.raises(RecipeError, match=r"x should be between 0 and 1, found 1\.01"):
        in_range(1.01, 0, 1, "x")
