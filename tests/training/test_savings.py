"""What steps compute and hold beside dense ones, with numbers by hand for a small grouped network."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.ir.step_macs import StepMacs
from sparsify.parts.allocation import uniform
from sparsify.training.savings import Bytes

# Weights of 16 x 8 and 8 x 16 positions with masks, and one of 4 x 8 without; biases of 16, 8 and 4.
DENSE = StepMacs(
    forward=128 + 128 + 32, inputs=128 + 32, weights=128 + 128 + 32
)  # the inputs of the network need no gradient
COMPACT = StepMacs(forward=32 + 32 + 32, inputs=32 + 32, weights=32 + 32 + 32)  # a quarter of each masked weight
ALL = 4 * (128 + 16 + 128 + 8 + 32 + 4)
KEPT = 4 * (32 + 16 + 32 + 8 + 32 + 4)
MASKS = 128 + 128  # a byte a position
INDICES = 8 * (4 * 2 + 2 * 4)  # four groups read two inputs each, two groups read four
SELECTED = 8 * (32 + 32)  # positions that the optimizer steps
GROUPED = {"density": 0.25, "pattern": "grouped:4", "allocation": uniform, "keep_dense": ("4.*",)}


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def started(method, *, compact="always", optimizer=momentum, total=6):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    program = sp.trace(model, (torch.rand(2, 8),)).train()
    held = optimizer(program.parameters())
    return sp.attach(method, program, held, total_steps=total, compact=compact)


def run(trainer, steps=6):
    x, y = torch.rand(6, 5, 8, generator=torch.Generator().manual_seed(1)), torch.arange(5) % 4
    for batch in x[trainer.steps : trainer.steps + steps]:
        nn.functional.cross_entropy(trainer.program(batch), y).backward()
        trainer.step()
        trainer.optimizer.zero_grad()
    return trainer.savings


def test_a_dense_run_saves_nothing():
    found = run(started(sp.Method(name="dense", density=1.0, initial="dense")))
    held = Bytes(weights=ALL, gradients=ALL, optimizer=ALL)
    assert (found.steps, found.macs_dense, found.macs) == (6, DENSE, DENSE.times(6))
    assert found.bytes_dense == found.bytes_peak == found.bytes_end == held
    assert found.macs_share == 1.0


def test_compact_weights_take_their_share_from_the_first_step():
    found = run(started(sp.methods.static_random(**GROUPED)))
    assert (found.macs_dense, found.macs) == (DENSE, COMPACT.times(6))
    assert found.macs_share == (96 + 64 + 96) / (288 + 160 + 288)
    assert found.bytes_dense == Bytes(weights=ALL, gradients=ALL, optimizer=ALL)
    assert found.bytes_peak == found.bytes_end == Bytes(KEPT, KEPT, KEPT, MASKS + INDICES)


def test_a_masked_weight_saves_no_multiply_accumulates():
    found = run(started(sp.methods.static_random(**GROUPED), compact="never"))
    assert found.macs == DENSE.times(6)
    assert found.bytes_peak == found.bytes_end == Bytes(ALL, ALL, ALL, MASKS)


def test_state_of_active_positions_is_counted_with_its_indices():
    found = run(started(sp.methods.static_random(**{**GROUPED, "pattern": "unstructured"})))
    assert found.macs == DENSE.times(6)
    assert found.bytes_dense == Bytes(weights=ALL, gradients=ALL, optimizer=ALL)
    assert found.bytes_peak == found.bytes_end == Bytes(ALL, ALL, KEPT, MASKS + SELECTED)


def test_the_counts_of_steps_of_adam_are_state_in_both():
    found = run(started(sp.methods.static_random(**GROUPED), optimizer=torch.optim.AdamW))
    assert (found.bytes_dense.optimizer, found.bytes_end.optimizer) == (2 * ALL + 6 * 4, 2 * KEPT + 6 * 4)


def test_a_weight_is_dense_until_it_is_pruned():
    found = run(started(sp.methods.one_shot(**GROUPED, prune_at=2)))
    assert found.macs == DENSE.times(2) + COMPACT.times(4)
    # With compact="always", the optimizer selects active positions even where all of them are.
    assert found.bytes_peak == Bytes(ALL, ALL, ALL, MASKS + 8 * (128 + 128))
    assert found.bytes_end == Bytes(KEPT, KEPT, KEPT, MASKS + INDICES)
    assert found.to_dict()["macs"]["inputs"] == (2 * 160 + 4 * 64) / 6


def test_the_mean_density_counts_the_masks_of_each_step():
    # 256 positions, all active in steps 1 and 2, and 64 in the four steps after the pruning.
    assert run(started(sp.methods.one_shot(**GROUPED, prune_at=2))).mean_density == (2 * 256 + 4 * 64) / (6 * 256)
    assert run(started(sp.methods.rigl(**GROUPED, update_every=2, stop_at=5))).mean_density == 0.25
    assert started(sp.methods.rigl(**GROUPED, update_every=2, stop_at=5)).savings.mean_density == 1.0  # no step yet
    assert run(started(sp.Method(name="dense", density=1.0, initial="dense"))).mean_density == 1.0


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_the_mean_density_of_a_resumed_run(stop):
    method = sp.methods.one_shot(**GROUPED, prune_at=2)
    first, second = started(method), started(method)
    run(first, stop)
    for ours, theirs in ((second, first), (second.program, first.program), (second.optimizer, first.optimizer)):
        ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert run(second, 6 - stop).mean_density == 0.5


def test_a_round_adds_the_dense_gradients_that_it_computes():
    trainer = started(sp.methods.rigl(**GROUPED, update_every=2, stop_at=5))
    assert run(trainer, 1).macs == COMPACT
    found = run(trainer, 5)
    assert trainer.counts["rounds"] == 2
    # Each round computes them once, to score what grows.
    assert found.macs == COMPACT.times(6) + StepMacs(weights=2 * (128 + 128))


def test_a_compact_weight_behind_a_random_mask_takes_its_share():
    method = sp.methods.cigl(sp.methods.rigl(**GROUPED, update_every=2, stop_at=5))
    trainer = started(method)
    assert trainer.forms["0.weight"].startswith("compact")
    assert run(trainer, 1).macs == COMPACT


def test_recorded_gradients_of_masked_weights_count_at_the_peak():
    method = sp.methods.rigl(**GROUPED, update_every=2, stop_at=5, replaces_step=False)
    found = run(started(method, compact="never"))
    assert found.macs == DENSE.times(6)  # what a masked step computes contains them
    assert found.bytes_peak == Bytes(ALL, ALL + 4 * (128 + 128), ALL, MASKS)
    assert found.bytes_end == Bytes(ALL, ALL, ALL, MASKS)


def test_a_frozen_weight_has_no_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    model[0].requires_grad_(False)
    program = sp.trace(model, (torch.rand(2, 8),)).train()
    trainer = sp.attach(
        sp.Method(name="dense", density=1.0, initial="dense"), program, momentum(program.parameters()), total_steps=1
    )
    nn.functional.cross_entropy(program(torch.rand(5, 8)), torch.arange(5) % 4).backward()
    trainer.step()
    assert trainer.savings.macs == StepMacs(forward=128 + 64, inputs=0, weights=64)
    assert trainer.savings.bytes_end == Bytes(weights=4 * (144 + 68), gradients=4 * 68, optimizer=4 * 68)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_run_counts_as_an_unbroken_one(stop):
    method = sp.methods.rigl(**GROUPED, update_every=2, stop_at=5)
    whole = run(started(method))
    first, second = started(method), started(method)
    run(first, stop)
    for ours, theirs in ((second, first), (second.program, first.program), (second.optimizer, first.optimizer)):
        ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert run(second, 6 - stop) == whole


def test_a_copied_trainer_counts_on_its_own():
    first = started(sp.methods.static_random(**GROUPED))
    run(first, 2)
    second = copy.deepcopy(first)
    run(first, 1)
    assert (first.savings.steps, second.savings.steps) == (3, 2)


def test_sums_of_long_runs_are_saved_exactly():
    trainer = started(sp.methods.static_random(**GROUPED))
    run(trainer, 1)
    state = trainer.state_dict()
    state["savings"]["sum"]["forward"] = str(2**60 + 1)
    trainer.load_state_dict(state)
    assert dataclasses.asdict(trainer.savings.macs)["forward"] == 2**60 + 1
