"""Distillation around methods: its slot, and what it refuses. What it does to a run is in tests/training/test_teaching.py."""

from __future__ import annotations

import pytest

import sparsify as sp
from sparsify.errors import RecipeError
from sparsify.parts.distillation import Distillation


def test_it_fills_its_slot_alone():
    base = sp.methods.moon(sp.methods.rigl(density=0.1))
    method = sp.methods.distilled(base, weight=0.5, temperature=2.0)
    assert method.name == "distilled(moon(rigl))" and method.distillation == Distillation(0.5, 2.0)
    assert sp.methods.distilled(base).distillation == Distillation(0.9, 4.0)
    changed = {key for key, value in vars(method).items() if value != vars(base)[key]}
    assert changed == {"name", "distillation"}


@pytest.mark.parametrize("options", [{"weight": -0.1}, {"weight": 1.1}, {"temperature": 0.0}])
def test_options_out_of_range(options):
    with pytest.raises(RecipeError, match="should be between"):
        sp.methods.distilled(sp.methods.dense(), **options)


def test_one_teacher_is_enough():
    with pytest.raises(RecipeError, match="learns from a teacher already"):
        sp.methods.distilled(sp.methods.distilled(sp.methods.dense()))
