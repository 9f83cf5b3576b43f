"""Masks at the start: independent of the weights, their density, scaling, and taps where they are asked for."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import RecipeError, SparsityWarning
from sparsify.reports import sizes
from sparsify.training.initial_masks import insert_masks
from tests.cases import cnn, digits

X, _ = digits(64)


def started(method, *, seed=0, tapped=False):
    program = cnn(seed).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.05, momentum=0.9)
    if tapped:
        insert_masks(method, program, optimizer, torch.Generator().manual_seed(seed), tapped=True)
    else:
        sp.attach(method, program, optimizer, total_steps=40, seed=seed)
    return program


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_random_masks_are_independent_of_weights_made_with_the_same_seed(seed):
    program = started(sp.methods.static_random(density=0.1), seed=seed)
    weight, mask = program.weight("8.weight"), program.mask("8.weight")
    active = weight.detach()[mask]
    # Independent: the mean of n uniform values in [-b, b] is within 4 standard errors, b / sqrt(3 n), of 0.
    bound = (1 / 1024) ** 0.5
    assert abs(float(active.mean())) < 4 * bound / (3 * len(active)) ** 0.5


def test_fan_in_scaling_by_hand_and_in_variance():
    plain = started(sp.methods.static_random(density=0.1))
    scaled = started(sp.methods.static_random(density=0.1, initial_scale="fan-in"))
    for name, mask in plain.masks().items():
        inputs = mask.flatten(1)
        factor = (inputs.shape[1] / inputs.sum(1).clamp_min(1)).sqrt()
        expected = plain.weight(name).flatten(1) * factor[:, None]
        torch.testing.assert_close(scaled.weight(name).flatten(1), expected)
    norm = float(scaled.weight("8.weight").detach().square().sum(1).mean())
    assert norm == pytest.approx(1 / 3, rel=0.1)  # dense: 1024 inputs of variance 1 / (3 * 1024)
    with pytest.raises(RecipeError, match="initial_scale should be fan-in or none"):
        sp.methods.rigl(density=0.1, initial_scale="fanin")


def test_taps_are_there_where_asked_for_and_inactive_weights_are_zero():
    method = sp.methods.granet(density=0.1, initial_density=0.5)
    program = started(method, tapped=True)
    assert set(program.taps()) == set(program.masks()) and started(sp.methods.static_random(density=0.1)).taps() == {}
    assert program.costs().density == pytest.approx(0.5, abs=1e-3)
    assert not any(bool(program.weight(name)[~mask].any()) for name, mask in program.masks().items())


class Words(nn.Module):
    """A table of ``rows`` words of 8 numbers, averaged, and a linear layer [4, 8] after it."""

    def __init__(self, rows):
        super().__init__()
        self.table, self.out = nn.Embedding(rows, 8), nn.Linear(8, 4)

    def forward(self, words):
        return self.out(self.table(words).mean(1))


@pytest.mark.parametrize("rows", [2, 100])
def test_attaching_to_a_model_that_stays_mostly_dense_says_what_does_and_why(rows):
    program = sp.trace(Words(rows), (torch.randint(0, rows, (3, 5)),))
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    found = f"Only 32 of the model's {8 * rows + 36:,} weights can be masked.*table.weight .800 weights: an embedding"
    with pytest.warns(SparsityWarning, match=found) if rows == 100 else contextlib.nullcontext():
        sp.attach(sp.methods.rigl(density=0.5), program, optimizer, total_steps=100)
    assert (sizes(program)["mostly_dense"] is None) == (rows == 2)
    assert sizes(program)["model_density"] == (8 * rows + 36 - 16) / (8 * rows + 36)
