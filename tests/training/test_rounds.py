"""Rounds of several moves, coverage and what was grown, states that travel."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch

import sparsify as sp
from sparsify.errors import TrainingError, TrainingWarning
from sparsify.loading import load_data
from sparsify.methods import Averaging, Method
from sparsify.parts.allocation import global_magnitude
from sparsify.parts.samples import Subset
from sparsify.parts.schedules import at, constant
from sparsify.parts.scores import gradient, magnitude
from sparsify.parts.topology import DropAndGrow, InTurn, Prune
from sparsify.training import Settings, train
from tests.cases import cnn
from tests.methods.one_layer import OneLayer

WEIGHTS = [[0.1, -0.2, 0.3, -0.4], [0.5, -0.6, 0.7, -0.8]]
GRADIENT = [[0.0, 5.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]


def in_turn(*, replaces_step: bool, prune_at: int = 1, exchange_at: int = 1) -> Method:
    prune = Prune(by=magnitude(), density=constant(0.5), when=at(prune_at), allocation=global_magnitude)
    exchange = DropAndGrow(magnitude(), gradient(), constant(0.25), at(exchange_at), replaces_step=replaces_step)
    return Method(name="both", density=0.5, initial="dense", topology=lambda total: InTurn((prune, exchange)))


@pytest.mark.parametrize("replaces_step", [False, True])
def test_a_second_move_reads_gradients_of_what_the_first_has_pruned(replaces_step):
    # The first row is pruned; then 0.5, the smallest left, is dropped, and (0, 1), of gradient 5, is grown at 0.
    layer = OneLayer(in_turn(replaces_step=replaces_step), WEIGHTS, total_steps=4)
    layer.step(GRADIENT)
    assert layer.mask.int().tolist() == [[0, 1, 0, 0], [0, 1, 1, 1]]
    torch.testing.assert_close(layer.weight, torch.tensor([[0.0] * 4, [0.0, -0.6, 0.7, -0.8]]))
    assert layer.trainer.grown == {"weight": 1} and layer.trainer.coverage == {"weight": 1.0}


def test_moves_act_on_their_own_steps_and_only_theirs_replace_the_optimizer():
    layer = OneLayer(in_turn(replaces_step=True, prune_at=1, exchange_at=3), WEIGHTS, total_steps=4, lr=0.1)
    moved = []
    for _ in range(4):
        before = layer.weight.clone()
        layer.step([[0.0] * 4, [0.0, 1.0, 1.0, 1.0]])
        moved.append(bool((layer.weight[1, 2:] != before[1, 2:]).any()))
    assert moved == [True, True, False, True] and layer.trainer.counts["rounds"] == 2


def test_a_gradient_that_is_not_finite_leaves_masks_and_coverage():
    layer = OneLayer(sp.methods.dst_ee(density=0.5, update_every=1, c=1.0, replaces_step=False), WEIGHTS, total_steps=8)
    mask, visits = layer.mask.clone(), layer.trainer.state_dict()["rounds"]["scores"]["0.grow"]["weight"][1].clone()
    with pytest.warns(TrainingWarning, match="the gradients of step 1 are not finite: the step was skipped"):
        layer.step([[float("nan")] * 4, [0.0] * 4])
    assert torch.equal(layer.mask, mask)
    assert layer.trainer.counts == {
        "rounds": 0,
        "skipped_rounds": 1,
        "skipped_steps": 1,
        "probes": 0,
        "forwards": 1,
        "backwards": 1,
    }
    assert torch.equal(layer.trainer.state_dict()["rounds"]["scores"]["0.grow"]["weight"][1], visits)


def test_coverage_of_fixed_and_of_pruned_masks():
    fixed = OneLayer(sp.methods.static_random(density=0.5), WEIGHTS, total_steps=4)
    fixed.step()
    assert fixed.trainer.coverage == {"weight": 0.5} and fixed.trainer.grown == {"weight": 0}
    pruned = OneLayer(sp.methods.one_shot(density=0.25, prune_at=1), WEIGHTS, total_steps=4)
    pruned.step()
    assert int(pruned.mask.sum()) == 2 and pruned.trainer.coverage == {"weight": 1.0}


def test_no_averaging_over_trainings():
    method = dataclasses.replace(
        sp.methods.imp(density=0.5, prune_fraction=0.5), averaging=lambda total: Averaging(start_at=3, every=1)
    )
    with pytest.raises(TrainingError, match="topology still changes on step 5"):
        OneLayer(method, WEIGHTS, total_steps=10)


@pytest.mark.parametrize("name", ["dst-ee", "itop", "granet", "ndsnn", "imp"])
def test_the_command_s_run_resumes_to_the_same_bits_and_history(name, tmp_path):
    data = load_data("digits", seed=0)
    data = dataclasses.replace(data, train=Subset(data.train, torch.arange(19 * 16)))
    options = {} if name == "imp" else {"update_every": 5}
    settings = Settings(epochs=3, lr=0.05, batch_size=16, checkpoint_every=7)

    def trained(folder, **more):
        program = cnn()
        method = sp.methods.build(name, {"density": 0.3, **options})
        return program, train(method, program, data.train, data.validation, settings, folder=folder, key="k", **more)

    def stop(row):
        if row["step"] == 31:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "a", on_step=stop)
    resumed, second = trained(tmp_path / "a", resume=True)
    whole, first = trained(tmp_path / "b")
    assert first == second and 0.3 <= first.coverage["8.weight"] <= 1.0
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())
    assert (tmp_path / "a" / "history.jsonl").read_bytes() == (tmp_path / "b" / "history.jsonl").read_bytes()


def quiet(method, total_steps):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OneLayer(method, WEIGHTS, total_steps=total_steps)


@pytest.mark.parametrize("name", ["rigl", "srigl", "itop", "dst-ee", "cigl(rigl)", "averaged(dst-ee)"])
def test_growth_by_gradient_in_a_short_run_is_said(name):
    method = sp.methods.build(name, {"density": 0.5, "update_every": 20})
    words = "grows by gradient from a sparse start, and 420 steps with 20 between rounds may be too few"
    with pytest.warns(TrainingWarning, match=words):
        OneLayer(method, WEIGHTS, total_steps=420)


@pytest.mark.parametrize(
    ("name", "options", "total_steps"),
    [
        ("set", {"update_every": 20}, 420),  # grows at random
        ("granet", {"update_every": 20}, 420),  # starts dense, and was above the others
        ("ndsnn", {"update_every": 20, "initial_density": 0.8}, 420),  # ends sparser than it starts
        ("rigl", {"update_every": 20, "dense_until": 100}, 420),
        ("gmp", {"update_every": 20}, 420),
        ("itop", {"update_every": 20, "growth": "random"}, 420),
        ("rigl", {"update_every": 20}, 500),  # no short run
        ("rigl", {"update_every": 20}, 99),  # a trial of a loop
        ("rigl", {"update_every": 100}, 420),  # rounds far apart
        ("rigl", {"update_every": 300}, 420),  # one round
    ],
)
def test_nothing_is_said_of_other_runs(name, options, total_steps):
    quiet(sp.methods.build(name, {"density": 0.5, **options}), total_steps)
