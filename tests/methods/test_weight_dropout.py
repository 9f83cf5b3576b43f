"""Random masks by hand: what a step sees, what it moves, and what rounds rank."""

from __future__ import annotations

import itertools

import pytest
import torch

import sparsify as sp
from sparsify.errors import RecipeError
from tests.methods.one_layer import OneLayer

WEIGHTS = [[0.1, -0.2, 0.3, -0.4], [0.5, -0.6, 0.7, -0.8]]
MASK = [[1, 1, 1, 1], [0, 0, 0, 0]]
VISIBLE = [[1, 0, 1, 1], [1, 0, 1, 1]]
ONES = [[1.0] * 4] * 2


def layer(*, lr=0.0, base=None, **options):
    base = base or sp.methods.static_random(density=0.5)
    found = OneLayer(sp.methods.weight_dropout(base, **options), WEIGHTS, total_steps=10, lr=lr)
    found.set_mask(MASK)
    see(found, VISIBLE)
    return found


def see(found, rows):
    found.program.get_buffer("weight_visible").copy_(torch.tensor(rows).bool())


def test_training_sees_visible_weights_and_evaluation_all():
    plain, scaled = layer(rescale=False), layer(rate=0.2)
    assert torch.equal(plain.program(plain.x), torch.tensor([[0.1, 0.0], [0.0, 0.0], [0.3, 0.0], [-0.4, 0.0]]))
    torch.testing.assert_close(scaled.program(scaled.x)[:, 0], torch.tensor([0.125, 0.0, 0.375, -0.5]))
    plain.program.eval()
    assert torch.equal(plain.program(plain.x)[:, 0], torch.tensor([0.1, -0.2, 0.3, -0.4]))


def test_a_step_moves_visible_active_weights_alone():
    found = layer(lr=0.1, rescale=False)
    found.step(ONES)
    torch.testing.assert_close(found.weight, torch.tensor([[0.0, -0.2, 0.2, -0.5], [0.0] * 4]))
    scaled = layer(lr=0.1, rate=0.2)
    scaled.step(ONES)  # dL/dw is the gradient of what was read, times 1 / 0.8
    torch.testing.assert_close(scaled.weight[0], torch.tensor([-0.025, -0.2, 0.175, -0.525]))


@pytest.mark.parametrize(("held", "second"), [(True, -0.2), (False, -0.18)])
def test_weight_decay_moves_hidden_weights_only_where_asked(held, second):
    found = layer(lr=0.1, rescale=False, holds_hidden=held)
    found.optimizer.param_groups[0]["weight_decay"] = 1.0
    found.step()
    torch.testing.assert_close(found.weight[0], torch.tensor([0.09, second, 0.27, -0.36]))


def test_a_round_ranks_weights_and_gradients_that_were_hidden_too():
    base = sp.methods.rigl(density=0.5, update_every=2, stop_at=6, drop_fraction=0.6)
    found = layer(base=base)
    found.step()
    see(found, VISIBLE)
    # One of four goes: 0.1 is the smallest, not the hidden -0.2. The largest gradient is at (1, 1), hidden as well.
    found.step([[0.0, 1.0, 1.0, 1.0], [0.5, -2.0, 1.5, 0.0]])
    assert found.mask.int().tolist() == [[0, 1, 1, 1], [0, 1, 0, 0]]


def test_masks_are_drawn_anew_each_step_at_the_rate_asked_for():
    torch.manual_seed(0)
    weights = torch.randn(50, 80).tolist()

    def drawn(seed):
        method = sp.methods.weight_dropout(sp.methods.static_random(density=0.5), rate=0.3)
        found = OneLayer(method, weights, total_steps=10, seed=seed)
        masks = []
        for _ in range(5):
            masks.append(found.program.get_buffer("weight_visible").clone())
            found.step()
        return torch.stack(masks)

    masks = drawn(3)
    # The mean of 20000 draws of deviation 0.46 is within 4 standard errors of 0.7.
    assert abs(float(masks.float().mean()) - 0.7) < 4 * 0.46 / 20000**0.5
    assert all(0.3 < float((a == b).float().mean()) < 0.7 for a, b in itertools.pairwise(masks))
    assert torch.equal(masks, drawn(3)) and not torch.equal(masks, drawn(4))


def test_a_dense_base_and_the_end_of_the_run():
    found = OneLayer(sp.methods.weight_dropout(sp.methods.dense(), rate=0.2), WEIGHTS, total_steps=2, lr=0.1)
    see(found, VISIBLE)
    found.step(ONES)
    expected = torch.tensor(WEIGHTS) - 0.125 * torch.tensor(VISIBLE)
    torch.testing.assert_close(found.weight, expected)
    found.trainer.finish()
    assert not found.program.random_mask_sites() and "weight_visible" not in found.program.state_dict()
    torch.testing.assert_close(found.program(found.x), expected.T)


def test_what_is_refused():
    base = sp.methods.rigl(density=0.1)
    with pytest.raises(RecipeError, match="has random masks already"):
        sp.methods.weight_dropout(sp.methods.weight_dropout(base))
    for rate in (1.0, 7, -0.1, float("nan")):
        with pytest.raises(
            RecipeError, match=r"^weight-dropout: rate should be a share of the weights in \[0, 1\), found"
        ):
            sp.methods.weight_dropout(base, rate=rate)
    sp.methods.weight_dropout(base, rate=0.9995)
