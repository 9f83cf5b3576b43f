"""Constraints on classes around methods: what fills the slots, what is refused, and a resumed run with the same bits."""

from __future__ import annotations

import io
import json

import pytest
import torch

import sparsify as sp
from sparsify.errors import RecipeError, TrainingError
from sparsify.parts.balancing import Balancing
from tests.methods.test_base_objectives import STEPS, X, Y, attached, run

RECALLS = [0.9] * 10


def test_it_fills_its_slots_alone():
    base = sp.methods.gmp(density=0.1)
    method = sp.methods.balancing_act(base, tolerance=0.02, classes=[3], start_at=7, memory=9, dual_rate=0.5)
    changed = {key for key, value in vars(method).items() if value != vars(base)[key]}
    assert changed == {"name", "objective", "tasks", "reference"} and method.needs_another and not base.needs_another
    assert method.reference is not None and method.objective is not None
    made = method.reference([0.5, None])(100)
    assert made == Balancing((0.5, None), "excess-gap", 0.02, 0.5, 9, (3,), 7)
    published = sp.methods.balancing_act(base, bounded=False, dense_recall=[0.5])
    assert published.objective is not None and not published.objective(9).bounded
    given = sp.methods.balancing_act(base, dense_recall=[0.5, 1.0])
    assert not given.needs_another and given.objective is not None and given.objective(100).start_at == 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 1.5}, "^tolerance should be between"),
        ({"dual_rate": 0.0}, "^dual_rate should be between"),
        ({"memory": 0}, "^memory should be between"),
        ({"constraint": "gap"}, "constraint should be excess-gap or recall, found 'gap'"),
        ({"start_at": -1}, "start_at should be a number of steps"),
        ({"classes": [-1]}, r"different class numbers from 0, found \[-1\]"),
        ({"classes": [2, 2]}, "different class numbers"),
        ({"dense_recall": [0.5, 1.1]}, "^dense_recall should be between"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(RecipeError, match=message):
        sp.methods.build("balancing-act(rigl)", {"density": 0.1, "balancing-act": options})


def test_another_loss_is_refused():
    with pytest.raises(RecipeError, match="has a loss of its own already"):
        sp.methods.build("balancing-act(focal(rigl))", {"density": 0.1})


def test_a_loop_without_the_dense_recalls_is_told_to_give_them():
    program, _, trainer = attached("balancing-act(set)")
    with pytest.raises(
        TrainingError, match=r"method 'balancing-act' compares with the recall of a dense model by class"
    ):
        trainer.loss(program(X[:16]), Y[:16])


@pytest.mark.parametrize("constraint", ["excess-gap", "recall"])
def test_it_trains_around_other_wrappers_and_a_resumed_run_has_the_same_bits(constraint):
    text = "distilled(averaged(balancing-act(agent(set))))"
    own = {"dense_recall": RECALLS, "constraint": constraint, "memory": 5, "dual_rate": 0.5, "start_at": 0}
    given = {
        "update_every": 3,
        "averaged": {"start_at": 9, "average_every": 1},
        "agent": {"snapshot": "running"},
        "balancing-act": own,
    }
    program, optimizer, trainer = attached(text, given)
    run(program, optimizer, trainer, 7)
    file = io.BytesIO()
    torch.save([program.state_dict(), optimizer.state_dict(), trainer.state_dict()], file)
    run(program, optimizer, trainer, STEPS - 7)
    assert trainer.readings()["largest_multiplier"] > 0 and trainer.counts["probes"]
    file.seek(0)
    weights, moments, state = torch.load(file, weights_only=True)
    resumed, optimizer, again = attached(text, given)
    resumed.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    again.load_state_dict(state)
    run(resumed, optimizer, again, STEPS - 7)
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in program.state_dict().items())
    assert again.readings() == trainer.readings() and json.dumps(again.readings())


def test_a_constraint_that_costs_nothing_trains_as_the_base_does_bit_for_bit():
    own = {"dense_recall": RECALLS, "tolerance": 1.0, "constraint": "recall", "memory": 1, "start_at": 0}
    one, optimizer, trainer = attached("balancing-act(set)", {"update_every": 3, "balancing-act": own})
    run(one, optimizer, trainer, STEPS)
    two, optimizer, trainer = attached("set", {"update_every": 3})
    run(two, optimizer, trainer, STEPS)
    assert all(torch.equal(value, two.state_dict()[key]) for key, value in one.state_dict().items())
