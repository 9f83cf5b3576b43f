"""Scores by hand; state goes in and comes out."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sparsify.parts.scores import Score, View, gradient, magnitude, random, saliency

WEIGHT = torch.tensor([[0.5, -2.0], [0.0, 1.0]])
VIEW = View(
    weight=WEIGHT,
    mask=WEIGHT != 0,
    gradient=torch.tensor([[-3.0, 0.5], [4.0, 0.0]]),
    step=7,
    generator=torch.Generator(),
)


@pytest.mark.parametrize(
    ("score", "expected", "needs_gradient"),
    [
        (magnitude(), [[0.5, 2.0], [0.0, 1.0]], False),
        (gradient(), [[3.0, 0.5], [4.0, 0.0]], True),
        (saliency(), [[1.5, 1.0], [0.0, 0.0]], True),
    ],
    ids=["magnitude", "gradient", "saliency"],
)
def test_by_hand(score, expected, needs_gradient):
    found, state = score.rate(VIEW, score.init(WEIGHT))
    assert found.tolist() == expected and state is None
    assert score.needs_gradient is needs_gradient
    if needs_gradient:
        with pytest.raises(ValueError, match="none was recorded"):
            score.rate(dataclasses.replace(VIEW, gradient=None), None)


def test_noise_comes_from_the_generator_alone():
    before = torch.random.get_rng_state()
    drawn = [
        random().rate(dataclasses.replace(VIEW, generator=torch.Generator().manual_seed(s)), None)[0] for s in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert drawn[0].shape == WEIGHT.shape
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_score_with_memory():
    visits = Score(torch.zeros_like, lambda view, state: (-(state + view.mask), state + view.mask))
    first, state = visits.rate(VIEW, visits.init(WEIGHT))
    second, _ = visits.rate(VIEW, state)
    assert first.tolist() == [[-1.0, -1.0], [0.0, -1.0]]
    assert second.tolist() == [[-2.0, -2.0], [0.0, -2.0]]
