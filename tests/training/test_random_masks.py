"""Random masks as a trainer holds them: draws, what is put back, and what is held."""

from __future__ import annotations

import functools

import torch
from torch import nn

import sparsify as sp
from sparsify.training.random_masks import RandomMasks


@functools.cache
def traced():
    """Traced once; every program is a copy."""
    torch.manual_seed(0)
    return sp.trace(nn.Linear(8, 6), (torch.ones(2, 8),))


def program(pipeline="insert-masks | insert-random-masks{rate=0.5}"):
    return sp.Pipeline.parse(pipeline)(traced())


def test_draws_follow_the_seed_and_go_on_from_a_saved_generator():
    first, second = RandomMasks(program(), seed=3, layouts={}), RandomMasks(program(), seed=3, layouts={})
    assert first.visible()["weight"].all() and "weight" in first and "bias" not in first
    for masks in (first, second):
        masks.draw()
    assert torch.equal(first.visible()["weight"], second.visible()["weight"])
    state = first.generator.get_state()
    first.draw()
    second.generator.set_state(state)
    second.draw()
    assert torch.equal(first.visible()["weight"], second.visible()["weight"])


def test_what_is_drawn_inside_is_forgotten():
    masks = RandomMasks(program(), seed=3, layouts={})
    masks.draw()
    before = masks.visible()["weight"].clone()
    with masks.kept():
        masks.draw()
        assert not torch.equal(masks.visible()["weight"], before)
    assert torch.equal(masks.visible()["weight"], before)


def test_hidden_weights_come_back_bit_for_bit():
    found = program()
    masks = RandomMasks(found, seed=3, layouts={})
    masks.draw()
    before, seen = found.weight("weight").detach().clone(), masks.visible()["weight"]
    with masks.hidden_still(), torch.no_grad():
        found.weight("weight").add_(1.0)
    assert torch.equal(found.weight("weight")[~seen], before[~seen])
    assert torch.equal(found.weight("weight")[seen], before[seen] + 1.0)


def test_a_program_without_random_masks_has_nothing_to_draw():
    masks = RandomMasks(program("insert-masks"), seed=3, layouts={})
    masks.draw()
    with masks.kept(), masks.hidden_still():
        pass
    assert masks.visible() == {}
