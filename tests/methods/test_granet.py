"""GraNet by hand: prune over all layers, then exchange the smallest of each layer for the largest gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import RecipeError
from tests.cases import cnn, digits
from tests.methods.one_layer import OneLayer

WEIGHTS = [[0.1, -0.2, 0.3, -0.4, 0.5], [-0.6, 0.7, -0.8, 0.9, -1.0]]
GRADIENT = [[0.5, 4.0, 0.3, 0.1, 0.2], [0.0, 0.0, 0.0, 0.0, 0.0]]


def started(**options):
    given = {"update_every": 4, "prune_until": 10, **options}
    return OneLayer(sp.methods.granet(density=0.2, **given), WEIGHTS, total_steps=20)


def test_a_round_prunes_then_regenerates():
    # Step 4 of 10: 0.2 + 0.8 * 0.6^3 = 0.3728 of ten: 4, namely -0.7 to -1.0. Then 0.005 + 0.2475 (1 + cos(pi / 5)) = 0.4527 of four: one
    # is dropped, 0.7, and of the rest (0, 1) has the largest gradient. It was pruned in this round, so it starts at 0.
    layer = started()
    for _ in range(3):
        layer.step(GRADIENT)
    assert bool(layer.mask.all())
    layer.step(GRADIENT)
    assert layer.mask.int().tolist() == [[0, 1, 0, 0, 0], [0, 0, 1, 1, 1]]
    torch.testing.assert_close(layer.weight, torch.tensor([[0.0] * 5, [0.0, 0.0, -0.8, 0.9, -1.0]]))


def test_pruning_ends_exactly_and_regeneration_goes_on():
    layer, active, masks = started(), [], []
    for _ in range(20):
        layer.step(GRADIENT)
        active.append(int(layer.mask.sum()))
        masks.append(layer.mask.clone())
    # 0.2 + 0.8 * 0.2^3 = 0.2064 on step 8; 0.2 on step 10, which is no multiple of 4 and prunes alone.
    assert active == [10] * 3 + [4] * 4 + [2] * 13
    assert layer.trainer.counts["rounds"] == 5  # 4, 8, 10, 12, 16
    assert layer.trainer.grown["weight"] >= 1


def test_a_position_dropped_to_regenerate_keeps_its_value_and_one_pruned_does_not():
    # The largest gradient is at (1, 1), 0.7, which the pruning of step 4 keeps and the regeneration drops: it comes back with its value.
    largest = [[0.0] * 5, [0.0, 9.0, 0.0, 0.0, 0.0]]
    layer = started()
    for _ in range(4):
        layer.step(largest)
    assert layer.mask.int().tolist() == [[0] * 5, [0, 1, 1, 1, 1]]
    assert layer.weight[1, 1] == pytest.approx(0.7)
    fresh = started(regrow_dropped=False)
    for _ in range(4):
        fresh.step(largest)
    assert fresh.mask.int().tolist() == [[1, 0, 0, 0, 0], [0, 0, 1, 1, 1]]  # ties at 0 go to the lowest index


def test_sparse_to_sparse_starts_at_the_density_asked_for():
    layer = started(initial_density=0.5, prune_from=2, prune_until=0.5)
    assert int(layer.mask.sum()) == 5
    active = []
    for _ in range(12):
        layer.step(GRADIENT)
        active.append(int(layer.mask.sum()))
    # 0.2 + 0.3 (1 - 2/8)^3 = 0.3266 on step 4, 0.2 + 0.3 (1/4)^3 = 0.2047 on step 8, 0.2 on step 10.
    assert active == [5] * 3 + [3] * 4 + [2] * 5


def test_the_budget_is_exact_where_active_weights_are_zero():
    """Grown weights that never moved tie with what is inactive; ranking over all layers must not give a layer more than it has."""
    x, y = digits(64)
    program = cnn(1).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.0)
    method = sp.methods.granet(
        density=0.05, update_every=2, drop_fraction=0.9, drop_fraction_end=0.9, initial_density=0.3
    )
    trainer = sp.attach(method, program, optimizer, total_steps=20)
    total, expected = program.costs().maskable, []
    for step in range(1, 21):
        nn.functional.cross_entropy(program(x), y).backward()
        trainer.step()
        optimizer.zero_grad()
        density = 0.05 + 0.25 * max(1 - step / 14, 0) ** 3
        if step == 14 or (step < 14 and step % 2 == 0):
            expected.append(round(density * total))
            assert program.costs().active == expected[-1], step
    assert expected[-1] == round(0.05 * total)


def test_a_pattern_that_fixes_its_density_starts_dense():
    weights = [[0.1, 0.4, 0.3, 0.2], [0.9, 0.6, 0.7, 0.8]]
    method = sp.methods.granet(density=0.5, update_every=2, prune_until=6, pattern="nm:2:4", drop_fraction=0.6)
    layer = OneLayer(method, weights, total_steps=8)
    for _ in range(8):
        layer.step([[0.0] * 4, [0.0] * 4])
    assert layer.mask.sum(dim=1).tolist() == [2, 2]
    with pytest.raises(RecipeError, match=r"fixes the density at 0\.5 from the start, found initial_density 0\.8"):
        sp.methods.granet(density=0.5, pattern="nm:2:4", initial_density=0.8)
    with pytest.raises(
        RecipeError, match=r"initial_density should be between the final density 0\.5 and 1, found 0\.2"
    ):
        sp.methods.granet(density=0.5, initial_density=0.2)
