"""CigL by hand: the mean of masked weights; and against an oracle that stashes and restores weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import RecipeError
from tests.cases import digits
from tests.methods.one_layer import OneLayer

WEIGHTS = [[1.0, -2.0, 3.0, -4.0]]


def averaged_by_hand(**options):
    """Two snapshots, after steps 2 and 3, of weights that lose 1 a step where they are visible."""
    base = sp.methods.static_random(density=1.0)
    method = sp.methods.cigl(base, rate=0.5, start_at=2, average_every=1, **options)
    layer = OneLayer(method, WEIGHTS, total_steps=3, lr=1.0)
    for rows in ([[1, 1, 1, 1]], [[1, 0, 1, 1]], [[1, 1, 0, 1]]):
        layer.program.get_buffer("weight_visible").copy_(torch.tensor(rows).bool())
        layer.step([[1.0] * 4])
    layer.trainer.finish()
    return layer.weight.tolist()


def test_weights_and_masks_are_averaged_together():
    # Weights after the steps: [0, -3, 2, -5], [-1, -3, 1, -6], [-2, -4, 1, -7]; hidden is the second, then the third.
    assert averaged_by_hand() == [[-1.5, -2.0, 0.5, -6.5]]
    assert averaged_by_hand(average_masks=False) == [[-1.5, -3.5, 1.0, -6.5]]


def test_rescaling_scales_the_average_as_training():
    # Gradients are twice as large: weights after the steps are [-1, -4, 1, -6], [-3, -4, -1, -8], [-5, -6, -1, -10].
    assert averaged_by_hand(rescale=True) == [[-8.0, -6.0, -1.0, -18.0]]


def test_against_an_oracle_that_hides_and_restores():
    """Algorithm 1 of the paper on plain tensors: hide, differentiate, restore, update what was visible, rank raw weights."""
    x, y = digits(64)
    x = x.flatten(1)
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(64, 10))
    weight, bias = net[0].weight.detach().clone().double(), net[0].bias.detach().clone().double()
    program = sp.trace(net, (x,)).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.5)
    base = sp.methods.rigl(density=0.25, update_every=4, stop_at=14, drop_fraction=0.4)
    trainer = sp.attach(
        sp.methods.cigl(base, rate=0.2, start_at=16, average_every=2), program, optimizer, total_steps=20
    )
    mask = program.mask("0.weight").clone()
    weight *= mask
    mean, bias_mean, count = torch.zeros_like(weight), torch.zeros_like(bias), 0
    for step in range(1, 21):
        seen = program.get_buffer("0.weight_visible").clone()
        hidden = (weight * seen).requires_grad_()
        offset = bias.clone().requires_grad_()
        loss = nn.functional.cross_entropy(x.double() @ hidden.T + offset, y)
        gradient, bias_gradient = torch.autograd.grad(loss, (hidden, offset))
        if step % 4 == 0 and step < 14:
            fraction = 0.4 / 2 * (1 + torch.cos(torch.tensor(torch.pi * step / 14)))
            n = int(fraction * int(mask.sum()))
            lowest = torch.where(mask, weight.abs(), torch.inf).flatten().argsort(stable=True)[:n]
            mask.view(-1)[lowest] = False
            highest = torch.where(mask, -torch.inf, gradient.abs()).flatten().argsort(descending=True, stable=True)[:n]
            mask.view(-1)[highest] = True
            weight *= mask
        else:
            weight -= 0.5 * gradient * seen * mask
            bias -= 0.5 * bias_gradient
        if step >= 16 and step % 2 == 0:
            mean, bias_mean, count = mean + weight * seen, bias_mean + bias, count + 1
        nn.functional.cross_entropy(program(x), y).backward()
        trainer.step()
        optimizer.zero_grad()
        assert torch.equal(program.mask("0.weight"), mask)
        torch.testing.assert_close(program.weight("0.weight").detach().double(), weight, rtol=0, atol=1e-6)
    trainer.finish()
    torch.testing.assert_close(program.weight("0.weight").detach().double(), mean / count, rtol=0, atol=1e-6)
    torch.testing.assert_close(program.weight("0.bias").detach().double(), bias_mean / count, rtol=0, atol=1e-6)
    assert trainer.counts["rounds"] == 3


def test_names_and_what_is_refused():
    base = sp.methods.rigl(density=0.1)
    assert sp.methods.cigl(base).name == "cigl(rigl)"
    for inner in (sp.methods.averaged(base), sp.methods.cigl(base)):
        with pytest.raises(RecipeError, match="averages weights already"):
            sp.methods.cigl(inner)
