"""Scores by hand; state goes in and comes out."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from sparsify.parts.schedules import constant
from sparsify.parts.scores import (
    MOST_VISITS,
    Score,
    View,
    absolute,
    added,
    by_gradient,
    exploration,
    gradient,
    magnitude,
    normalised,
    or_random,
    random,
    saliency,
    scaled,
    signed_gradient,
    unvisited,
)

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
        (signed_gradient(), [[-3.0, 0.5], [4.0, 0.0]], True),
        (absolute(signed_gradient()), [[3.0, 0.5], [4.0, 0.0]], True),
        (normalised(gradient()), [[0.75, 0.125], [1.0, 0.0]], True),  # one position is inactive, of |g| = 4
        (normalised(magnitude()), [[0.5, 2.0], [0.0, 1.0]], False),  # what is inactive is 0: left as it is
    ],
    ids=["magnitude", "gradient", "saliency", "signed", "absolute", "normalised", "nothing-to-normalise-by"],
)
def test_by_hand(score, expected, needs_gradient):
    found, state = score.rate(VIEW, score.init(WEIGHT))
    assert found.tolist() == expected and state is None
    assert score.needs_gradient is needs_gradient
    if needs_gradient:
        with pytest.raises(ValueError, match="recorded none"):
            score.rate(dataclasses.replace(VIEW, gradient=None), None)


def rated(score, gradient):
    weight = torch.zeros_like(gradient)
    view = View(weight=weight, mask=weight != 0, gradient=gradient, step=1, generator=torch.Generator())
    return score.rate(view, None)[0]


def test_scaled_by_hand():
    # Rows (3, 1) and (0, 4): mean squares 5 and 8; columns (3, 0) and (1, 4): 4.5 and 8.5; all: 26 / 4 = 6.5.
    found = torch.tensor([[-3.0, 1.0], [0.0, 4.0]])
    rows = [[3 / 5**0.5, 1 / 5**0.5], [0.0, 4 / 8**0.5]]
    columns = [[3 / 4.5**0.5, 1 / 8.5**0.5], [0.0, 4 / 8.5**0.5]]
    both = [[3 * (6.5 / (5 * 4.5)) ** 0.5, (6.5 / (5 * 8.5)) ** 0.5], [0.0, 4 * (6.5 / (8 * 8.5)) ** 0.5]]
    for by, expected in (("outputs", rows), ("inputs", columns), ("both", both), ("none", found.abs().tolist())):
        torch.testing.assert_close(rated(scaled(gradient(), by), found), torch.tensor(expected))


def test_a_gain_of_each_output_and_input_does_not_change_what_is_scaled_by_it():
    plain = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    outputs, inputs = (
        torch.tensor([1e-3, 1.0, 7.0, 100.0]).view(4, 1, 1, 1),
        torch.tensor([0.1, 5.0, 1.0]).view(3, 1, 1),
    )
    for by, gain in (("outputs", outputs), ("inputs", inputs)):
        torch.testing.assert_close(rated(scaled(gradient(), by), plain * gain), rated(scaled(gradient(), by), plain))
    layer = torch.ones(4, 3, 2, 2)  # both: what is a gain of an output times one of an input is all the same
    torch.testing.assert_close(rated(scaled(gradient(), "both"), layer * outputs * inputs), layer)


def test_scaled_leaves_signs_and_outputs_without_gradient():
    found = torch.tensor([[-3.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(rated(scaled(signed_gradient(), "outputs"), found), found / 12.5**0.5)
    assert rated(scaled(gradient(), "both"), torch.zeros(2, 2)).tolist() == [[0.0, 0.0]] * 2


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


def test_exploration_counts_masks_and_its_bonus_falls():
    # c ln(t) / (N + eps) with c = 2, t = 7, eps = 0.5; N is 1 where the mask is on, then 2, and 0 where it is off.
    score, ln7 = exploration(constant(2.0), eps=0.5), math.log(7)
    first, state = score.rate(VIEW, score.init(WEIGHT))
    torch.testing.assert_close(first, torch.tensor([[2 * ln7 / 1.5] * 2, [2 * ln7 / 0.5, 2 * ln7 / 1.5]]))
    second, state = score.rate(VIEW, state)
    torch.testing.assert_close(second, torch.tensor([[2 * ln7 / 2.5] * 2, [2 * ln7 / 0.5, 2 * ln7 / 2.5]]))
    assert state.dtype is torch.int16 and state.tolist() == [[2, 2], [0, 2]]


def test_units_of_time_and_of_visits():
    # Rounds every 3 steps: step 7 is t = 7/3 rounds, one mask is three steps.
    found, _ = exploration(constant(1.0), step_unit=3, visit_unit=3).rate(VIEW, torch.zeros(2, 2, dtype=torch.int16))
    torch.testing.assert_close(found, math.log(7 / 3) * torch.tensor([[1 / 4, 1 / 4], [1.0, 1 / 4]]))
    early, _ = exploration(constant(1.0), step_unit=9).rate(VIEW, torch.zeros(2, 2, dtype=torch.int16))
    assert not early.any()  # ln(7 / 9) would be a malus


def test_visits_stay_at_the_largest_number():
    full = torch.full((2, 2), MOST_VISITS, dtype=torch.int16)
    found, state = exploration(constant(1.0)).rate(VIEW, full)
    assert torch.equal(state, full) and bool((found > 0).all())


def test_a_sum_carries_both_states_and_no_exploration_changes_no_bit():
    score = added(gradient(), exploration(constant(0.0)))
    assert score.needs_gradient
    found, state = score.rate(VIEW, score.init(WEIGHT))
    assert torch.equal(found, gradient().rate(VIEW, None)[0])
    assert state[0] is None and state[1].tolist() == [[1, 1], [0, 1]]


def test_unvisited_are_those_never_active_up_to_now():
    score = unvisited()
    found, state = score.rate(VIEW, score.init(WEIGHT))
    assert found.tolist() == [[0.0, 0.0], [1.0, 0.0]]
    moved = dataclasses.replace(VIEW, mask=torch.tensor([[False, False], [True, False]]))
    assert not score.rate(moved, state)[0].any()


def test_a_layer_without_inactive_positions_is_not_normalised():
    dense = dataclasses.replace(VIEW, mask=torch.ones(2, 2, dtype=torch.bool))
    assert torch.equal(normalised(gradient()).rate(dense, None)[0], gradient().rate(VIEW, None)[0])


def test_scores_that_are_all_0_become_random_and_are_counted():
    score = or_random(gradient())
    state = score.init(WEIGHT)
    scores, state = score.rate(VIEW, state)
    assert torch.equal(scores, VIEW.gradient.abs()) and score.readings(state) == {"grown_at_random": 0.0}
    silent = dataclasses.replace(VIEW, gradient=torch.zeros(2, 2), generator=torch.Generator().manual_seed(3))
    scores, state = score.rate(silent, state)
    assert torch.equal(scores, torch.rand(2, 2, generator=torch.Generator().manual_seed(3)))
    scores, state = score.rate(VIEW, state)
    assert torch.equal(scores, VIEW.gradient.abs()) and score.readings(state) == {"grown_at_random": 1.0}
    assert score.needs_gradient and score.rate(silent, state)[1] == (None, 2)


def test_growth_by_gradient_as_methods_offer_it():
    silent = dataclasses.replace(VIEW, gradient=torch.zeros(2, 2))
    assert not by_gradient().rate(silent, None)[0].any() and by_gradient().readings is None
    random_growth = by_gradient(normalise="outputs", when_silent="random")
    assert random_growth.rate(silent, random_growth.init(WEIGHT))[0].any()
    want = scaled(gradient(), "outputs").rate(VIEW, None)[0]
    assert torch.equal(random_growth.rate(VIEW, random_growth.init(WEIGHT))[0], want)
