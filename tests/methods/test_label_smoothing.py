"""Label smoothing and MaxSup on a line over the run."""

from __future__ import annotations

import pytest
import torch

import sparsify as sp
from sparsify.parts import calibrating_losses as losses

LOGITS, LABELS = torch.tensor([[2.0, 1.0, 0.1], [0.5, 2.5, -0.5]]), torch.tensor([0, 0])


@pytest.mark.parametrize(
    ("method", "name", "compute", "numbers"),
    [
        (sp.methods.label_smoothing(sp.methods.dense(), smoothing=0.4, smoothing_end=0.0), "smoothing", losses.label_smoothing,
         [0.4, 0.3, 0.2, 0.1, 0.0]),
        (sp.methods.maxsup(sp.methods.dense(), weight_end=0.2), "maxsup_weight", losses.maxsup, [0.1, 0.125, 0.15, 0.175, 0.2]),
    ],
)  # fmt: skip
def test_the_first_step_has_the_first_number_and_the_last_step_the_last(method, name, compute, numbers):
    objective = method.objective(5)
    state = objective.init()
    for step, number in enumerate(numbers, 1):
        state = objective.observe(LOGITS, LABELS, state, step)
        assert objective.readings(state) == {name: pytest.approx(number)}
        assert torch.equal(objective.loss(LOGITS, LABELS, state), compute(LOGITS, LABELS, state[name]))


def test_a_run_of_one_step_has_the_first_number():
    objective = sp.methods.maxsup(sp.methods.dense(), weight_end=0.2).objective(1)
    assert objective.observe(LOGITS, LABELS, objective.init(), 1) == {"maxsup_weight": 0.1}


def test_a_recipe_names_both_ends():
    given = {"density": 0.1, "label-smoothing": {"smoothing": 0.1, "smoothing_end": 0.02}}
    objective = sp.methods.build("label-smoothing(rigl)", given).objective(3)
    assert objective.observe(LOGITS, LABELS, {}, 2) == {"smoothing": pytest.approx(0.06)}
