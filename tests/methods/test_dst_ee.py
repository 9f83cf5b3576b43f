"""DST-EE by hand, against a slow oracle, and against RigL where c is 0."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import RecipeError
from tests.cases import cnn, digits
from tests.methods.one_layer import OneLayer

WEIGHTS = [[0.1, -0.2, 0.3, -0.4], [0.5, -0.6, 0.7, -0.8]]
MASK = [[1, 1, 1, 1], [0, 0, 0, 0]]
FIRST = [[0.0, 0.0, 0.0, 0.0], [0.3, -0.5, 0.2, 0.1]]
SECOND = [[0.6, 0.0, 0.0, 0.0], [0.3, -0.5, 0.2, -0.4]]


def rounds(gradients, **options):
    """A layer after rounds on steps 2, 4, ... with these gradients; each exchanges one of four active positions."""
    method = sp.methods.dst_ee(
        density=0.5, update_every=2, stop_at=8, drop_fraction=0.3, drop_fraction_end=0.3, **options
    )
    layer = OneLayer(method, WEIGHTS, total_steps=10)
    layer.set_mask(MASK)
    for gradient in gradients:
        layer.step()
        layer.step(gradient)
    return layer


def test_a_position_never_tried_beats_one_of_larger_gradient_that_was():
    # Round 1, step 2: 0.1 is dropped. N is 1 in the first row and 0 in the second: all candidates there share the bonus, and |-0.5| wins.
    # Round 2, step 4: the grown weight at (1, 1) is 0 and goes. Its N is 1, as at (0, 0), and 0 in the rest of the second row.
    #   S(0, 0) = 0.6 + 0.5 ln 4 / (1 + 1) = 0.947    S(1, 1) = 0.5 + 0.5 ln 4 / (1 + 1) = 0.847
    #   S(1, 3) = 0.4 + 0.5 ln 4 / (0 + 1) = 1.093    S(1, 0) = 0.3 + 0.693 = 0.993
    layer = rounds([FIRST], c=0.5)
    assert layer.mask.int().tolist() == [[0, 1, 1, 1], [0, 1, 0, 0]]
    layer = rounds([FIRST, SECOND], c=0.5)
    assert layer.mask.int().tolist() == [[0, 1, 1, 1], [0, 0, 0, 1]]
    assert layer.trainer.coverage == {"weight": 6 / 8} and layer.trainer.grown == {"weight": 2}
    # Without exploration the largest gradient, which had been there, comes back.
    greedy = rounds([FIRST, SECOND], c=0.0)
    assert greedy.mask.int().tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]
    assert greedy.trainer.coverage == {"weight": 5 / 8}


def test_the_signed_form_subtracts_the_bonus_from_negative_gradients():
    # |g + b| with b = 0.5 ln 4 / (N + 1): (1, 0) |0.3 + 0.693| = 0.993, (0, 0) |0.6 + 0.347| = 0.947, (1, 3) |-0.4 + 0.693| = 0.293.
    # Before, on step 2, b = 0.5 ln 2 = 0.347: (1, 0) 0.647 beats (1, 1) |-0.5 + 0.347| = 0.153. So (1, 0) has N = 1 on step 4, falls to
    # |0.3 + 0.347| = 0.647, and (0, 0) comes back.
    layer = rounds([FIRST], c=0.5, signed=True)
    assert layer.mask.int().tolist() == [[0, 1, 1, 1], [1, 0, 0, 0]]
    layer = rounds([FIRST, SECOND], c=0.5, signed=True)
    assert layer.mask.int().tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]


def test_c_decays():
    # 0.5 on step 2; from step 3 on 0.5 * 0.01: the bonus at step 4 is below 0.007, and the largest gradient wins.
    layer = rounds([FIRST, SECOND], c=0.5, c_decay=0.01, c_decay_every=3)
    assert layer.mask.int().tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]


def test_normalised_gradients_make_c_free_of_scale():
    small = [[[value * 1e-4 for value in row] for row in table] for table in (FIRST, SECOND)]
    for gradients in ([FIRST, SECOND], small):
        masks = rounds(gradients, c=0.05, normalise="layer").mask, rounds(gradients, c=5.0, normalise="layer").mask
        assert masks[0].int().tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]  # 0.6 beats 0.4 by more than the bonus
        assert masks[1].int().tolist() == [[0, 1, 1, 1], [0, 0, 0, 1]]
    # Plainly, a c that explores at one scale drowns the gradients at another.
    assert rounds([FIRST, SECOND], c=0.05).mask[0, 0] and not rounds(small, c=0.05).mask[0, 0]


@pytest.mark.parametrize("visits", ["rounds", "steps"])
@pytest.mark.parametrize("clock", ["rounds", "steps"])
@pytest.mark.parametrize("c", [0.0, 1e-3, 0.1])
def test_rounds_against_an_oracle(c, clock, visits):
    """Masks of a layer of 6 x 10 over rounds with written gradients: sorted lists, Python floats."""
    generator = torch.Generator().manual_seed(3)
    method = sp.methods.dst_ee(
        density=0.4, update_every=5, stop_at="100%", drop_fraction=0.4, c=c, eps=0.7, clock=clock, visits=visits
    )
    weights = torch.rand((6, 10), generator=generator).tolist()
    layer = OneLayer(method, weights, total_steps=31)
    value = layer.weight.reshape(-1).tolist()
    active = {i for i, on in enumerate(layer.mask.reshape(-1).tolist()) if on}
    visited = [0] * 60
    for step in range(1, 32):
        gradient = torch.randn((6, 10), generator=generator) * 0.1
        layer.step(gradient.tolist())
        if step % 5 == 0 and step < 31:
            fraction = 0.2 * (1 + math.cos(math.pi * step / 31))
            for i in active:
                visited[i] += 1
            kept = sorted(active, key=lambda i: (-abs(value[i]), i))[: 24 - int(fraction * 24)]
            flat, t = gradient.reshape(-1).tolist(), step if clock == "steps" else step / 5
            unit = 1 if visits == "rounds" else 5
            score = [abs(g) + c * math.log(t) / (n * unit + 0.7) for g, n in zip(flat, visited, strict=True)]
            rest = sorted(set(range(60)) - set(kept), key=lambda i: (-score[i], i))[: 24 - len(kept)]
            active = {*kept, *rest}
            value = [v if i in active else 0.0 for i, v in enumerate(value)]
        assert set(layer.mask.reshape(-1).nonzero()[:, 0].tolist()) == active, step


@pytest.mark.parametrize("options", [{}, {"replaces_step": False}, {"regrow_dropped": False}, {"pattern": "grouped:5"}])
def test_without_exploration_it_is_rigl_bit_for_bit(options):
    x, y = digits(32)
    results = []
    for method in (sp.methods.rigl, lambda **given: sp.methods.dst_ee(c=0.0, **given)):
        program = cnn(1).train()
        optimizer = torch.optim.SGD(program.parameters(), lr=0.05, momentum=0.9)
        made = method(density=0.3, update_every=4, **options)
        trainer = sp.attach(made, program, optimizer, total_steps=30, seed=5)
        for _ in range(30):
            nn.functional.cross_entropy(program(x), y).backward()
            trainer.step()
            optimizer.zero_grad()
        results.append((program.state_dict(), trainer.counts, trainer.coverage))
    (rigl, *known), (found, *same) = results
    assert known == same and known[0]["rounds"] == 5
    assert all(torch.equal(value, found[name]) for name, value in rigl.items())


def test_more_exploration_covers_more():
    x, y = digits(32)
    found = []
    for c in (0.0, 0.01, 1.0):
        program = cnn(1).train()
        optimizer = torch.optim.SGD(program.parameters(), lr=0.05, momentum=0.9)
        method = sp.methods.dst_ee(density=0.1, update_every=4, c=c)
        trainer = sp.attach(method, program, optimizer, total_steps=60)
        for _ in range(60):
            nn.functional.cross_entropy(program(x), y).backward()
            trainer.step()
            optimizer.zero_grad()
        found.append(trainer.coverage["8.weight"])
    assert found[0] < found[1] < found[2]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"c": -1.0}, "c should be between"),
        ({"eps": 0.0}, "eps should be between"),
        ({"c_decay": 1.5}, "c_decay should be between"),
        ({"c_decay_every": 0}, "c_decay_every should be between"),
        ({"normalise": "model"}, "normalise should be none or outputs or inputs or both or layer, found 'model'"),
        ({"visits": "epochs"}, "visits should be rounds or steps"),
        ({"clock": "epochs"}, "clock should be rounds or steps"),
        ({"drop_fraction_end": 2.0}, "drop_fraction_end"),
    ],
)
def test_options_out_of_range(option, message):
    with pytest.raises(RecipeError, match=message):
        sp.methods.dst_ee(density=0.1, **option)
