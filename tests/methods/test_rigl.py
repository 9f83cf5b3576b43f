"""RigL by hand: one round on a layer of eight weights with a written dense gradient."""

from __future__ import annotations

import functools

import pytest
import torch

import sparsify as sp
from sparsify.errors import RecipeError
from sparsify.parts.allocation import uniform
from tests.methods.one_layer import OneLayer

WEIGHTS = [[0.1, -0.2, 0.3, -0.4], [0.5, -0.6, 0.7, -0.8]]
MASK = [[1, 1, 1, 1], [0, 0, 0, 0]]
GRADIENT = [[0.0, 1.0, 1.0, 1.0], [0.5, -2.0, 1.5, 0.0]]


def after_a_round(gradient=GRADIENT, *, lr=0.0, **options):
    method = sp.methods.rigl(density=0.5, update_every=2, stop_at=6, drop_fraction=0.6, **options)
    layer = OneLayer(method, WEIGHTS, total_steps=10, lr=lr)
    layer.set_mask(MASK)
    layer.step()
    layer.step(gradient)
    return layer


def test_the_smallest_weight_goes_and_the_largest_gradient_comes():
    # 0.45 of four active on step 2: one. 0.1 is the smallest; |-2.0| the largest gradient of the others.
    layer = after_a_round()
    assert layer.mask.int().tolist() == [[0, 1, 1, 1], [0, 1, 0, 0]]
    assert layer.weight[1, 1] == 0


def test_a_dropped_position_with_the_largest_gradient_comes_back_with_its_value():
    gradient = [[9.0, 1.0, 1.0, 1.0], [0.5, -2.0, 1.5, 0.0]]
    assert torch.equal(after_a_round(gradient).weight[0], torch.tensor(WEIGHTS[0]))
    fresh = after_a_round(gradient, regrow_dropped=False)
    assert fresh.mask.int().tolist() == [[0, 1, 1, 1], [0, 1, 0, 0]]


def test_a_round_takes_the_place_of_the_optimizer_step():
    layer = after_a_round(lr=0.1)
    assert torch.equal(layer.weight[0, 1:], torch.tensor(WEIGHTS[0][1:]))
    stepped = after_a_round(lr=0.1, replaces_step=False)
    torch.testing.assert_close(stepped.weight[0, 1:], torch.tensor([-0.3, 0.2, -0.5]))


def test_only_active_weights_move_between_rounds():
    layer = after_a_round()
    layer.optimizer.param_groups[0]["lr"] = 0.1
    layer.step([[1.0] * 4] * 2)
    moved = (layer.weight != after_a_round().weight).int().tolist()
    assert moved == [[0, 1, 1, 1], [0, 1, 0, 0]]


GROWING = {
    "rigl": sp.methods.rigl,
    "granet": functools.partial(sp.methods.granet, initial_density=0.5, initial_allocation=uniform, allocation=uniform),
    "itop": sp.methods.itop,
    "dst-ee": functools.partial(sp.methods.dst_ee, c=0.0),
}


@pytest.mark.parametrize("name", GROWING)
def test_normalised_by_outputs_growth_does_not_gather_on_the_loudest(name):
    # Three outputs read two of four inputs each. The first has a hundred times the gradient of the second; the third's is flat.
    loud = torch.tensor([[100.0, 200.0, 300.0, 900.0], [1.0, 2.0, 3.0, 9.0], [3.0, 3.0, 3.0, 4.0]])
    weights, mask = [[1.0, 1.0, 0.1, 0.1]] * 3, [[1, 1, 0, 0]] * 3
    found = {}
    for normalise in ("none", "outputs"):
        options = {"density": 0.5, "update_every": 1, "drop_fraction": 0.5, "normalise": normalise}
        layer = OneLayer(GROWING[name](**options, regrow_dropped=False), weights, total_steps=100)
        layer.set_mask(mask)
        layer.step(loud.tolist())
        grown = layer.mask & ~torch.tensor(mask, dtype=torch.bool)
        found[normalise] = grown.sum(dim=1).tolist()
    assert found == {"none": [2, 0, 0], "outputs": [1, 1, 0]}, found


@pytest.mark.parametrize("name", [*GROWING, "srigl"])
def test_an_unknown_normalisation_is_refused(name):
    with pytest.raises(RecipeError, match=r"normalise should be none or outputs or inputs or both.*found 'rows'"):
        sp.methods.build(name, {"density": 0.5, "normalise": "rows"})


def test_normalising_growth_that_reads_no_gradient_is_refused():
    with pytest.raises(RecipeError, match=r"growth is 'random'; found normalise = 'both'"):
        sp.methods.itop(density=0.5, growth="random", normalise="both")


def test_a_dense_start_ends_with_the_largest_magnitudes():
    method = sp.methods.rigl(density=0.5, update_every=2, stop_at=8, dense_until=3)
    layer = OneLayer(method, WEIGHTS, total_steps=10)
    for _ in range(2):
        layer.step(GRADIENT)
        assert layer.mask.all() and torch.equal(layer.weight, torch.tensor(WEIGHTS))
    layer.step()
    assert layer.mask.int().tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]  # 0.5 to 0.8
    assert layer.trainer.counts["rounds"] == 1
    layer.step(GRADIENT)  # the first round: 0.3 * (1 + cos(pi / 2)) / 2 of four, none
    assert layer.trainer.counts["rounds"] == 2 and layer.trainer.density == 0.5


def test_a_dense_start_leaves_steps_for_the_rest():
    with pytest.raises(RecipeError, match="should leave steps"):
        OneLayer(sp.methods.rigl(density=0.5, dense_until="100%"), WEIGHTS, total_steps=10)
