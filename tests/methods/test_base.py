"""`Method` and the readings of its options."""

from __future__ import annotations

import pytest

import sparsify as sp
from sparsify.errors import PatternError, RecipeError
from sparsify.methods.base import Method, as_steps, in_range


@pytest.mark.parametrize(("value", "steps"), [(1, 1), (70, 70), (0.5, 100), (1.0, 200), (0.001, 1), (0.75, 150)])
def test_whole_numbers_are_steps_and_fractions_are_of_the_run(value, steps):
    assert as_steps(value, 200, "stop_at") == steps


@pytest.mark.parametrize("value", [0, -3, 0.0, 1.5, -0.1, float("nan")])
def test_other_step_counts_are_refused(value):
    with pytest.raises(RecipeError, match="stop_at should be a number of steps"):
        as_steps(value, 200, "stop_at")


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
def test_ranges_are_closed_and_refuse_the_rest(value):
    assert in_range(0.0, 0.0, 1.0, "x") == 0.0
    assert in_range(1.0, 0.0, 1.0, "x") == 1.0
    with pytest.raises(RecipeError, match=r"x should be between 0\.0 and 1\.0"):
        in_range(value, 0.0, 1.0, "x")


@pytest.mark.parametrize("density", [0.0, -0.1, 1.2, float("nan")])
def test_densities_out_of_range_are_refused(density):
    with pytest.raises(RecipeError, match=r"fraction in \(0, 1\].*Sparsity 0\.9 is density 0\.1"):
        Method(name="m", density=density, initial="random")


def test_an_unknown_initial_scale_is_refused():
    with pytest.raises(RecipeError, match="fan-in or none"):
        Method(name="m", density=0.1, initial="random", initial_scale="fan-out")


def test_a_pattern_that_fixes_its_density_refuses_another():
    sp.methods.one_shot(density=0.5, pattern="nm:2:4")
    sp.methods.rigl(density=0.333, pattern="nm:1:3")  # 1/3 cannot be written
    with pytest.raises(RecipeError, match=r"fixes the density at 0\.5 \(sparsity 0\.5\), found 0\.1"):
        sp.methods.one_shot(density=0.1, pattern="nm:2:4")
    with pytest.raises(PatternError, match="no pattern"):
        sp.methods.rigl(density=0.1, pattern="2:4")
