"""Durations: steps or a share of the run, never told apart by the type of a number."""

from __future__ import annotations

import inspect

import pytest

import sparsify as sp
from sparsify.errors import RecipeError
from sparsify.methods import METHODS, WRAPPERS
from sparsify.methods.durations import UPDATE_EVERY, as_steps, check_durations, dense_steps


@pytest.mark.parametrize(
    ("value", "total", "expected"),
    [
        (1, 200, 1),
        (30, 200, 30),
        (0.25, 200, 50),
        (0.001, 200, 1),
        ("25%", 200, 50),
        (" 0.4 %", 1000, 4),
        ("100%", 200, 200),
        ("1%", 20, 1),
        ("3% from 4 to 100", 28, 4),
        ("3% from 4 to 100", 420, 13),
        ("3% from 4 to 100", 32_000, 100),
    ],
)
def test_steps_and_shares(value, total, expected):
    assert as_steps(value, total, "stop_at") == expected


@pytest.mark.parametrize("value", [0, -3, 0.0, 1.5, float("nan"), float("inf"), True, None])
@pytest.mark.parametrize("read", [lambda v: as_steps(v, 200, "stop_at"), lambda v: check_durations(stop_at=v)])
def test_neither_steps_nor_a_share(value, read):
    with pytest.raises(RecipeError, match=r"stop_at should be a number of steps from 1 on .* or a share of the run"):
        read(value)


@pytest.mark.parametrize("value", ["75", "0%", "101%", "-5%", "75 percent", "3% from 0 to 9", "3% from 9 to 4", ""])
def test_a_text_is_a_percentage(value):
    with pytest.raises(RecipeError, match="stop_at should be"):
        as_steps(value, 200, "stop_at")


def test_a_whole_float_is_ambiguous_and_refused():
    with pytest.raises(RecipeError, match=r"prune_at = 1\.0 .* Write 1 for steps, or '100%' for the whole run"):
        sp.methods.one_shot(density=0.5, prune_at=1.0)
    with pytest.raises(RecipeError, match=r"update_every = 100\.0 .* Write 100 for steps"):
        sp.methods.rigl(density=0.5, update_every=100.0)


def test_a_start_may_be_the_beginning():
    assert [as_steps(value, 200, "from", least=0) for value in (0, 0.0, "0%", "50%", 7)] == [0, 0, 0, 100, 7]
    assert [as_steps("25% from 0 to 20", total, "warmup", least=0) for total in (1, 40, 500)] == [0, 10, 20]
    assert dense_steps("50%", 200) == 100
    with pytest.raises(RecipeError, match="leave steps for the sparse part; found 100%"):
        dense_steps("100%", 200)


@pytest.mark.parametrize(
    "method", [sp.methods.rigl, sp.methods.set, sp.methods.srigl, sp.methods.dst_ee, sp.methods.gmp]
)
def test_the_usual_interval_makes_rounds_in_short_runs_and_is_100_in_long_ones(method):
    assert inspect.signature(method).parameters["update_every"].default == UPDATE_EVERY
    for total, interval in ((28, 4), (420, 13), (5000, 100)):
        when = method(density=0.1).topology(total).when
        due = [step for step in range(1, total + 1) if when(step)]
        usual = [step for step in due if step % interval == 0]
        assert len(usual) >= 3 and len(due) - len(usual) <= 1, "the last round of gmp falls on its end"


def test_every_duration_of_every_method_is_checked_when_the_method_is_made():
    """1.0 is no duration: each option that is annotated as one refuses it, before the length of the run is known."""
    found = 0
    for name, make in {**METHODS, **WRAPPERS}.items():
        parameters = inspect.signature(make).parameters.values()
        for option in (p.name for p in parameters if "Duration" in str(p.annotation)):
            base = (sp.methods.rigl(density=0.5),) if name in WRAPPERS else ()
            given = {option: 1.0} if base else {option: 1.0, "density": 0.5}
            with pytest.raises(RecipeError, match=f"{option} = 1.0"):
                make(*base, **given)
            found += 1
    assert found >= 30
