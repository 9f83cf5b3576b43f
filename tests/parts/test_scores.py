"""Scores by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsify.parts.scores import Score, View, gradient, magnitude, random, saliency, stateless

WEIGHT = torch.tensor([[1.0, -2.0], [0.0, 0.5]])
MASK = torch.tensor([[True, True], [False, True]])
GRADIENT = torch.tensor([[0.5, 1.0], [-3.0, 0.0]])


def view(*, gradient: Tensor | None = GRADIENT, seed: int = 0, step: int = 1) -> View:
    return View(WEIGHT, MASK, gradient, step, torch.Generator().manual_seed(seed))


def rated(score: Score, at: View) -> Tensor:
    return score.rate(at, score.init(WEIGHT))[0]


def test_magnitude_gradient_and_saliency():
    assert torch.equal(rated(magnitude(), view()), torch.tensor([[1.0, 2.0], [0.0, 0.5]]))
    assert torch.equal(rated(gradient(), view()), torch.tensor([[0.5, 1.0], [3.0, 0.0]]))
    assert torch.equal(rated(saliency(), view()), torch.tensor([[0.5, 2.0], [0.0, 0.0]]))
    assert [score.needs_gradient for score in (magnitude(), gradient(), saliency(), random())] == [
        False,
        True,
        True,
        False,
    ]


def test_random_comes_from_the_generator_alone():
    before = torch.random.get_rng_state()
    first, second, other = (rated(random(), view(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())
    one = view(seed=1)
    assert not torch.equal(rated(random(), one), rated(random(), one))


def test_a_gradient_that_was_not_recorded_is_said():
    with pytest.raises(ValueError, match="none was recorded"):
        rated(gradient(), view(gradient=None))


def test_state_goes_in_and_comes_out():
    def rate(view: View, visits: Tensor) -> tuple[Tensor, Tensor]:
        visits = visits + view.mask
        return 1 / (1 + visits), visits

    score = Score(torch.zeros_like, rate)
    state = first = score.init(WEIGHT)
    for _ in range(3):
        scores, state = score.rate(view(), state)
    assert torch.equal(state, torch.tensor([[3.0, 3.0], [0.0, 3.0]]))
    assert torch.equal(scores, torch.tensor([[0.25, 0.25], [1.0, 0.25]]))
    assert torch.equal(first, torch.zeros(2, 2))
    assert stateless(lambda v: v.weight).init(WEIGHT) is None
