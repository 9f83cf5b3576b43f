"""Mixup and RankMixup around methods: their slot, and what they refuse. What they do to a run is in tests/training/test_mixing.py."""

from __future__ import annotations

import pytest

import sparsify as sp
from sparsify.errors import RecipeError
from sparsify.parts.mixing import Mixing, Ranking


def test_they_fill_their_slot_alone():
    base = sp.methods.moon(sp.methods.rigl(density=0.1))
    mixed = sp.methods.mixup(base, concentration=0.2)
    assert mixed.name == "mixup(moon(rigl))" and mixed.mixing == Mixing(0.2)
    assert {key for key, value in vars(mixed).items() if value != vars(base)[key]} == {"name", "mixing"}
    assert sp.methods.mixup(sp.methods.dense()).mixing == Mixing(1.0)
    assert sp.methods.mixup(sp.methods.dense()).tasks == ()
    ranked = sp.methods.rankmixup(sp.methods.dense())
    assert ranked.mixing == Mixing(2.0, Ranking("ndcg", 0.1, 2.0), 3) and ranked.tasks == ("classification",)
    margin = sp.methods.rankmixup(sp.methods.dense(), form="margin", margin=1.0, weight=0.3)
    assert margin.mixing == Mixing(2.0, Ranking("margin", 0.3, 1.0), 1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mixup", {"concentration": 0.0}, "^concentration should be between"),
        ("mixup", {"concentration": float("nan")}, "^concentration should be between"),
        ("rankmixup", {"form": "mrl"}, "^form should be ndcg or margin, found 'mrl'"),
        ("rankmixup", {"weight": -1.0}, "^weight should be between"),
        ("rankmixup", {"concentration": 1000.0}, "^concentration should be between"),
        ("rankmixup", {"combinations": 0}, "^combinations should be between"),
        ("rankmixup", {"margin": -1.0, "form": "margin"}, "^margin should be between"),
        ("rankmixup", {"form": "margin", "combinations": 2}, "form margin has one per sample"),
        ("rankmixup", {"margin": 1.0}, "form ndcg has none"),
    ],
)
def test_options_out_of_range(name, options, message):
    with pytest.raises(RecipeError, match=message):
        sp.methods.build(f"{name}(dense)", {name: options})


@pytest.mark.parametrize("text", ["mixup(rankmixup(dense))", "rankmixup(mixup(dense))"])
def test_a_batch_is_mixed_once(text):
    with pytest.raises(RecipeError, match="mixes samples already; wrap a method that does not"):
        sp.methods.build(text, {})
