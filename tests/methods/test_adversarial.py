"""Adversarial training: a training run that withstands attacks, and a correction that stays unbiased under them."""

from __future__ import annotations

import pytest
import torch

import sparsify as sp
from sparsify.errors import RecipeError


def test_it_fills_its_slot():
    method = sp.methods.adversarial(sp.methods.rigl(density=0.1), radius=0.2, step_size=0.1, iterations=3)
    assert method.name == "adversarial(rigl)"
    assert (method.attack.radius, method.attack.step_size, method.attack.iterations) == (0.2, 0.1, 3)
    default = sp.methods.adversarial(sp.methods.dense()).attack
    assert (default.radius, default.step_size, default.iterations) == (8 / 255, 2 / 255, 10)
    assert torch.tensor(default.radius) < 1


@pytest.mark.parametrize("options", [{"iterations": 0}, {"radius": -0.1}, {"step_size": -1.0}])
def test_options_out_of_range(options):
    with pytest.raises(RecipeError, match="should be between"):
        sp.methods.adversarial(sp.methods.dense(), **options)


def test_one_attack_is_enough():
    with pytest.raises(RecipeError, match="attacks inputs already"):
        sp.methods.adversarial(sp.methods.adversarial(sp.methods.dense()))
