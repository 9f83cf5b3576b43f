"""Losses that protect classes: by hand, against finite differences, and with slow buffers."""

from __future__ import annotations

import collections
import math

import pytest
import torch
from torch.nn import functional

from sparsify.errors import TrainingError
from sparsify.parts.balancing import EXCESS_GAP, RECALL, Balancing, ByFrequency, class_weighted, lagrangian

LOGITS = torch.tensor([[2, 1, 0.1], [0.5, 2.5, -0.5], [1, 1.2, 0.8], [-1, 0, 3]], dtype=torch.float64)
LABELS = torch.tensor([0, 0, 2, 2])


def losses():
    return [
        math.log(sum(math.exp(v) for v in row)) - row[y]
        for row, y in zip(LOGITS.tolist(), LABELS.tolist(), strict=True)
    ]


def scored(right, label):
    """Logits [1, 2] whose decision is the label, or is not."""
    decision = label if right else 1 - label
    return torch.nn.functional.one_hot(torch.tensor([decision]), 2).double()


def test_the_lagrangian_by_hand():
    first, second, third, fourth = losses()
    mean, zero, two = (first + second + third + fourth) / 4, (first + second) / 2, (third + fourth) / 2
    multipliers = torch.tensor([0.5, 3.0, 0.25], dtype=torch.float64)  # class 1 has no sample in the batch
    found = lagrangian(LOGITS, LABELS, multipliers, excess=True)
    assert float(found) == pytest.approx(mean + 0.5 * (zero - mean) + 0.25 * (two - mean))
    found = lagrangian(LOGITS, LABELS, multipliers, excess=False)
    assert float(found) == pytest.approx(mean + 0.5 * zero + 0.25 * two)


def test_the_mean_is_subtracted_once_at_most_unless_asked():
    first, second, third, fourth = losses()
    mean, zero, two = (first + second + third + fourth) / 4, (first + second) / 2, (third + fourth) / 2
    multipliers = torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64)
    found = lagrangian(LOGITS, LABELS, multipliers, excess=True)
    assert float(found) == pytest.approx(2 * zero + two)
    found = lagrangian(LOGITS, LABELS, multipliers, excess=True, bounded=False)
    assert float(found) == pytest.approx(2 * zero + two - 2 * mean)


@pytest.mark.parametrize("excess", [True, False])
def test_without_multipliers_it_is_cross_entropy_bit_for_bit(excess):
    found = lagrangian(LOGITS, LABELS, torch.zeros(3, dtype=torch.float64), excess=excess)
    assert torch.equal(found, functional.cross_entropy(LOGITS, LABELS))


@pytest.mark.parametrize("excess", [True, False])
def test_the_gradient_is_that_of_finite_differences(excess):
    multipliers = torch.tensor([0.5, 3.0, 0.25], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda z: lagrangian(z, LABELS, multipliers, excess=excess), LOGITS.clone().requires_grad_()
    )


def test_multipliers_move_before_the_loss_and_only_with_full_memories_by_hand():
    # Two classes, dense recalls 1 and 0.5, memory 2, rate 0.1, tolerance 0.1. Class 0 is right, then wrong; class 1 always right.
    made = Balancing((1.0, 0.5), constraint=RECALL, tolerance=0.1, rate=0.1, memory=2)
    state = made.init()
    assert made.readings(state) == {"largest_multiplier": 0.0, "largest_gap": 0.0}
    for step, label in ((1, 0), (2, 1)):
        state = made.observe(scored(True, label), torch.tensor([label]), state, step)
        assert state["multipliers"].tolist() == [0, 0] and state["gaps"].isnan().all()
    state = made.observe(scored(False, 0), torch.tensor([0]), state, 3)
    # Class 0: recall 1/2, gap 1/2, multiplier 0.1 (0.5 - 0.1) = 0.04. The memory of class 1 holds one prediction.
    assert state["multipliers"].tolist() == pytest.approx([0.04, 0]) and state["gaps"].tolist()[0] == 0.5
    state = made.observe(scored(True, 1), torch.tensor([1]), state, 4)
    # Class 0 again + 0.04; class 1 has the gap 0.5 - 1, so that its multiplier stays 0.
    assert state["multipliers"].tolist() == pytest.approx([0.08, 0]) and state["gaps"].tolist() == [0.5, -0.5]
    assert made.readings(state) == {"largest_multiplier": pytest.approx(0.08), "largest_gap": 0.5}


def test_excess_gaps_leave_out_the_mean_by_hand():
    made = Balancing((1.0, 0.5), constraint=EXCESS_GAP, tolerance=0.0, rate=1.0, memory=1)
    logits = torch.cat([scored(False, 0), scored(True, 1), scored(True, 1), scored(True, 1)])
    state = made.observe(logits, torch.tensor([0, 1, 1, 1]), made.init(), 1)
    # Gaps 1 and -0.5; their mean by shares 1/4 and 3/4 is -0.125; the excess gaps are 1.125 and -0.375.
    assert state["gaps"].tolist() == [1.125, -0.375] and state["multipliers"].tolist() == [1.125, 0]


def test_chosen_classes_and_the_first_step():
    made = Balancing((1.0, 1.0), constraint=RECALL, tolerance=0.0, rate=1.0, memory=1, classes=(1,), start_at=2)
    logits, labels = torch.cat([scored(False, 0), scored(False, 1)]), torch.tensor([0, 1])
    state = made.observe(logits, labels, made.init(), 1)
    assert state["multipliers"].tolist() == [0, 0]
    state = made.observe(logits, labels, state, 2)
    assert state["multipliers"].tolist() == [0, 1] and made.readings(state)["largest_gap"] == 1.0


def test_memories_hold_the_last_predictions_of_each_class():
    """Beside one deque per class, with batches that hold more samples of a class than its memory."""
    draw = torch.Generator().manual_seed(0)
    made = Balancing((0.9,) * 5, constraint=RECALL, memory=7)
    state, slow = made.init(), [collections.deque(maxlen=7) for _ in range(5)]
    for step in range(1, 12):
        labels = torch.randint(3 if step < 6 else 5, (16,), generator=draw)
        logits = torch.rand(16, 5, generator=draw)
        before = {key: value.clone() for key, value in state.items()}
        following = made.observe(logits, labels, state, step)
        assert all(torch.equal(state[key].nan_to_num(9), before[key].nan_to_num(9)) for key in before)  # a value, too
        state = following
        for hit, label in zip((logits.argmax(1) == labels).tolist(), labels.tolist(), strict=True):
            slow[label].append(hit)
        for k in range(5):
            if len(slow[k]) == 7:
                assert int(state["right"][k].sum()) == sum(slow[k])
                assert float(state["gaps"][k]) == pytest.approx(0.9 - sum(slow[k]) / 7)
            else:
                assert state["gaps"][k].isnan()


def test_a_class_without_a_dense_recall_has_no_constraint():
    made = Balancing((1.0, None), constraint=RECALL, tolerance=0.0, rate=1.0, memory=1)
    logits = torch.cat([scored(False, 0), scored(False, 1)])
    state = made.observe(logits, torch.tensor([0, 1]), made.init(), 1)
    assert state["multipliers"].tolist() == [1, 0]
    unknown = torch.cat([logits, torch.zeros(2, 1)], 1)  # three logits, as an unknown class adds one
    assert made.observe(unknown, torch.tensor([0, 1]), made.init(), 1)["multipliers"].tolist() == [1, 0, 0]


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(TrainingError, match=r"which is not known. Give it as dense_recall=\[...\]"):
        Balancing(None).observe(LOGITS, LABELS, {}, 1)
    for made in (Balancing((0.5,) * 4), Balancing((0.5,) * 2), Balancing((0.5,) * 3, classes=(3,))):
        with pytest.raises(TrainingError, match="found 3 logits and label 2"):
            made.observe(LOGITS, LABELS, {}, 1)
    with pytest.raises(TrainingError, match="takes logits"):
        Balancing((0.5,) * 3).observe(LOGITS, LABELS.double(), {}, 1)


def test_weights_of_classes_by_hand():
    first, second, third, fourth = losses()
    found = class_weighted(LOGITS, LABELS, (1.0, 7.0, 3.0))
    assert float(found) == pytest.approx((first + second + 3 * third + 3 * fourth) / 8)
    with pytest.raises(TrainingError, match="weights of 2 classes, and the logits 3"):
        class_weighted(LOGITS, LABELS, (1.0, 2.0))


def test_weights_by_frequency_by_hand():
    first, second, third, fourth = losses()
    made = ByFrequency()
    assert made.readings(made.init()) == {"imbalance": 1.0}
    state = made.observe(LOGITS, torch.tensor([0, 0, 0, 2]), made.init(), 1)
    state = made.observe(LOGITS, LABELS, state, 2)
    # Five labels of class 0, three of class 2, none of class 1.
    assert state["seen"].tolist() == [5, 0, 3] and made.readings(state) == {"imbalance": pytest.approx(5 / 3)}
    expected = ((first + second) / 5 + (third + fourth) / 3) / (2 / 5 + 2 / 3)
    assert float(made.loss(LOGITS, LABELS, state)) == pytest.approx(expected)
