"""Slots of a method: what their durations stand for in a run is recorded, and what does not belong in one is refused by name."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from pathlib import Path

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import RecipeError, TrainingError
from sparsify.methods import METHODS, WRAPPERS
from sparsify.methods.durations import as_steps, resolving
from sparsify.parts.topology import DropAndGrow, InTurn, Prune, Rewinding
from sparsify.training.slots import filled

STEPS = 200
EXPECTED = {
    "dense": {},
    "static": {},
    "one-shot": {"topology.prune_at": 100, "first_round": 100, "last_round": 100},
    "gmp": {
        "topology.start_at": 10,
        "topology.stop_at": 150,
        "topology.update_every": 6,
        "first_round": 12,
        "last_round": 150,
    },
    "set": {"topology.stop_at": 150, "topology.dense_until": 0, "topology.update_every": 6, "first_round": 6, "last_round": 144},
    "averaged(gmp)": {
        "topology.start_at": 10,
        "topology.stop_at": 150,
        "topology.update_every": 6,
        "averaging.start_at": 160,
        "averaging.average_every": 1,
        "first_round": 12,
        "last_round": 150,
    },
    "agent(static)": {"correction.refresh_every": 0},
    "moon(static)": {
        "objective.warmup": 10,
        "objective.alpha_every": 2,
        "averaging.average_from": 160,
        "averaging.average_every": 2,
    },
}  # fmt: skip


@functools.cache
def traced():
    """Traced once; every run takes a copy."""
    torch.manual_seed(0)
    return sp.trace(nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)), (torch.rand(4, 64),))


def attached(method, **options):
    program = traced().clone().train()
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    return sp.attach(
        method, program, optimizer, **{"total_steps": STEPS, "epoch_steps": 10, "sweep": lambda: iter(()), **options}
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_durations_stand_for_steps(name):
    trainer = attached(sp.methods.build(name, {} if name == "dense" else {"density": 0.1}))
    assert trainer.schedule == EXPECTED[name]


def test_the_schedule_of_the_documentation_is_the_one_found():
    page = (Path(__file__).parents[2] / "docs/own_loop.md").read_text()
    assert f"`{attached(sp.methods.rigl(density=0.1), total_steps=1000).schedule}`" in page


def test_a_share_of_a_training_is_recorded_in_steps_of_the_run():
    # Three prunings at 0.5: a training has T steps, of which the first 0.2 T are made once: T + 3 * 0.8 T = 204, so T = 60.
    schedule = attached(sp.methods.imp(density=0.125, prune_fraction=0.5, rewind_to="20%"), total_steps=204).schedule
    assert schedule == {"rewinding.rewind_to": 12, "first_round": 60, "last_round": 156}


@pytest.mark.parametrize("name", [*METHODS, *(f"{wrapper}(set)" for wrapper in WRAPPERS)])
def test_every_duration_of_every_method_is_recorded(name):
    method = sp.methods.build(name, {} if name == "dense" else {"density": 0.1})
    recorded = {key.partition(".")[2] for key in filled(method, STEPS).durations}
    makers = [WRAPPERS[name[:-5]], METHODS["set"]] if name.endswith("(set)") else [METHODS[name]]
    durations = {
        key
        for make in makers
        for key, p in inspect.signature(make).parameters.items()
        if "Duration" in str(p.annotation)
    }
    assert durations == recorded


def test_only_what_is_resolved_within_the_block_is_collected():
    as_steps("50%", 10, "before")
    with resolving() as found:
        as_steps("50%", 10, "stop_at")
        with resolving() as inner:
            as_steps(3, 10, "warmup")
    as_steps("50%", 10, "after")
    assert found == {"stop_at": 5} and inner == {"warmup": 3}


class Half:
    """An objective without its readings."""

    def init(self): ...
    def observe(self, logits, labels, state, step): ...
    def loss(self, logits, labels, state): ...


WRONG = {
    "topology": ((len, "failed for a run of 200 steps: TypeError.*returns DropAndGrow or Prune or InTurn"),
                 (lambda total: None, "should return DropAndGrow or Prune or InTurn, found None"),
                 (lambda total: DropAndGrow, "found the class DropAndGrow"),
                 (lambda: None, "failed for a run of 200 steps: TypeError"),
                 (lambda total: 1 // 0, "failed .* ZeroDivisionError")),
    "rewinding": ((lambda total: (3, 5), "should return Rewinding, found"), (lambda total: 7, "should return Rewinding, found 7")),
    "correction": ((lambda total: lambda view, state: state, "should return Correction, found the function"),),
    "objective": ((lambda total: nn.CrossEntropyLoss(), "should return an Objective .*found CrossEntropyLoss"),
                  (lambda total: Half(), r"methods init, observe, loss, readings\), found Half"),
                  (lambda total: Half, "found the class Half")),
    "averaging": ((lambda total: 160, "should return Averaging, found 160"),),
}  # fmt: skip


@pytest.mark.parametrize(("slot", "wrong", "message"), [(s, *pair) for s, pairs in WRONG.items() for pair in pairs])
def test_what_does_not_belong_in_a_slot_is_refused(slot, wrong, message):
    method = dataclasses.replace(sp.methods.static_random(density=0.5), name="mine", **{slot: wrong})
    with pytest.raises(TrainingError, match=rf"method 'mine': slot {slot} .*{message}"):
        attached(method)


def test_what_a_method_itself_says_of_the_length_is_left_as_it_is():
    with pytest.raises(RecipeError, match=r"^dense_until should leave steps for the sparse part"):
        attached(sp.methods.set(density=0.5, dense_until=300))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda set_: DropAndGrow(set_.drop_by, set_.grow_by, 0.3, set_.when), "DropAndGrow: fraction should be a function, found 0.3"),
        (lambda set_: DropAndGrow(set_.drop_by, set_.grow_by, set_.fraction, 100), "when should be a function, found 100"),
        (lambda set_: DropAndGrow("magnitude", set_.grow_by, set_.fraction, set_.when), "drop_by should be a Score, found 'magnitude'"),
        (lambda set_: Prune(set_.drop_by, 0.1, set_.when, sp.methods.base.erk), "Prune: density should be a function, found 0.1"),
        (lambda set_: InTurn(set_), "InTurn: moves should be a list"),
        (lambda set_: Rewinding(0, 100), "Rewinding: at should be a list of whole numbers, found 100"),
    ],
)  # fmt: skip
def test_fields_of_moves_are_checked(make, message):
    with pytest.raises(RecipeError, match=message):
        make(sp.methods.set(density=0.5).topology(STEPS))
