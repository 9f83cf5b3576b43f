"""Optimizer steps on active weights only: the bits of masked training, less state, and loops as users write them."""

from __future__ import annotations

import copy
import functools
import itertools

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import TrainingWarning
from sparsify.training.active_steps import BOUNDS
from tests.cases import digits
from tests.training.test_compact_weights import STEPS, Loop, adamw, assert_same, traced

sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3, foreach=False)
AMSGRAD = functools.partial(torch.optim.Adam, lr=1e-3, amsgrad=True)
RMSPROP = functools.partial(torch.optim.RMSprop, lr=1e-3, momentum=0.9, centered=True)


def loop(method="rigl", pattern="unstructured", **given):
    return Loop(method, pattern, **given)


def sizes(found):
    """The number of values that the optimizer remembers of each masked weight."""
    weights = {name: found.program.get_parameter(name) for name in found.program.masks()}
    return {
        name: {value.numel() for value in found.optimizer.state[weight].values() if getattr(value, "ndim", 0)}
        for name, weight in weights.items()
    }


def active(program):
    return {name: {int(mask.sum())} for name, mask in program.masks().items()}


@pytest.mark.parametrize(
    ("method", "pattern", "optimizer"),
    [
        *((method, "unstructured", sgd) for method in ("static", "set", "dst-ee", "gmp", "granet", "ndsnn", "one-shot", "averaged(set)")),
        *(("rigl", "unstructured", optimizer) for optimizer in (sgd, adamw, AMSGRAD, RMSPROP, torch.optim.Adagrad, torch.optim.ASGD)),
        ("rigl", "fan-in", adamw),
    ],
)  # fmt: skip
def test_the_bits_of_masked_training(method, pattern, optimizer):
    stepped, masked = (loop(method, pattern, optimizer=optimizer, compact=compact) for compact in ("always", "never"))
    stepped.run(), masked.run()
    assert all(map(torch.equal, a.values(), b.values()) for a, b in zip(stepped.masks, masked.masks, strict=True))
    assert_same(stepped, masked, bits=True)
    assert "steps its active positions" not in "".join(masked.trainer.forms.values())


@pytest.mark.parametrize("optimizer", [sgd, adamw])
def test_the_state_is_as_small_as_the_active_part(optimizer):
    found = loop(optimizer=optimizer)
    found.run(7)  # the round of step 6 has changed the masks
    assert sizes(found) == active(found.program)
    assert all(form.endswith("steps its active positions since step 1") for form in found.trainer.forms.values())
    dense = found.optimizer.state_dict()["state"]
    assert all(
        value.shape == weight.shape
        for weight, entries in zip(found.program.parameters(), dense.values(), strict=True)
        for value in entries.values()
        if getattr(value, "ndim", 0)
    )
    found.trainer.finish(stopped_early=True)
    assert sizes(found) == {name: {mask.numel()} for name, mask in found.program.masks().items()}
    loss = nn.functional.cross_entropy(found.program(digits(8)[0].double()), digits(8)[1])
    loss.backward()
    found.optimizer.step()  # the loop's own step again


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
@pytest.mark.parametrize("compact", ["always", "never"])
def test_a_saved_run_continues_to_the_same_bits(order, compact):
    whole = loop(optimizer=adamw)
    half = loop(optimizer=adamw).run(11).saved()
    resumed = loop(optimizer=adamw, compact=compact).load(half, order)
    begun = loop(optimizer=adamw, compact=compact).run(4).load(half, order)  # of other masks before it loads
    whole.run(), resumed.run(STEPS - 11), begun.run(STEPS - 11)
    for other in (resumed, begun):
        assert_same(other, whole, bits=True)
    if compact == "always":
        assert resumed.trainer.forms == whole.trainer.forms


def test_masks_that_load_without_the_optimizer_take_the_state_along():
    found, other = (loop(optimizer=adamw).run(4) for _ in range(2))
    masks = {name: mask.roll(1, 0) for name, mask in other.program.masks().items()}
    before = {name: found.optimizer.state_dict()["state"][0]["exp_avg"].clone() for name in list(masks)[:1]}
    state = {**found.program.state_dict(), **{f"{name}_mask": mask for name, mask in masks.items()}}
    state |= {name: found.program.weight(name) * mask for name, mask in masks.items()}
    found.program.load_state_dict(state)
    found.loss().backward()
    found.trainer.step()
    assert sizes(found) == active(found.program)
    name = next(iter(masks))
    moved = found.optimizer.state_dict()["state"][0]["exp_avg"]
    old, gradient = before[name], found.program.get_parameter(name).grad
    assert torch.allclose(moved, (0.9 * old + 0.1 * gradient) * masks[name])
    assert not moved[~masks[name]].any()


def test_a_dense_start_is_stepped_dense_until_it_is_sparse_enough():
    torch.manual_seed(0)
    program = sp.trace(nn.Linear(64, 256), (torch.rand(2, 64),)).train()
    optimizer = torch.optim.AdamW(program.parameters())
    trainer = sp.attach(
        sp.methods.gmp(density=0.1, update_every=2, start_at=4, stop_at=16), program, optimizer, total_steps=30
    )
    found = []
    for _ in range(30):
        program(torch.rand(8, 64)).square().mean().backward()
        trainer.step()
        optimizer.zero_grad()
        mask = program.mask("weight")
        found.append(
            (trainer.density, optimizer.state[program.get_parameter("weight")]["exp_avg"].numel(), mask.numel())
        )
    assert found[0][1] == found[0][2]
    assert found[-1][1] == round(0.1 * found[-1][2])
    at = next(step for step, (_, held, whole) in enumerate(found, 1) if held < whole)
    assert found[at - 2][0] <= BOUNDS.highest
    assert trainer.forms["weight"].endswith(f"since step {at}")


@pytest.mark.parametrize(
    ("optimizer", "width", "density", "selects"),
    [
        (functools.partial(torch.optim.SGD, lr=0.1), 512, 0.05, False),
        (functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9), 512, 0.05, False),
        (torch.optim.AdamW, 128, 0.3, True),
        (torch.optim.AdamW, 128, 0.6, False),
        (torch.optim.AdamW, 64, 0.1, False),
        (torch.optim.Adafactor, 512, 0.1, False),  # depends on the shapes of weights
        (type("Own", (torch.optim.AdamW,), {}), 128, 0.3, False),
    ],
)
def test_where_it_is_faster(optimizer, width, density, selects):
    program = sp.trace(nn.Linear(width, width), (torch.rand(2, width),)).train()
    held = optimizer(program.parameters())
    trainer = sp.attach(sp.methods.static_random(density=density), program, held, total_steps=3)
    program(torch.rand(4, width)).square().sum().backward()
    trainer.step()
    assert ("steps its active positions" in trainer.forms["weight"]) == selects


def clipped(found):
    found.loss().backward()
    nn.utils.clip_grad_norm_(found.program.parameters(), 0.1)
    found.trainer.step()
    found.optimizer.zero_grad()


def accumulated(found):
    for _ in range(2):
        found.loss().backward()
    found.trainer.step()
    found.optimizer.zero_grad(set_to_none=False)


def scaled(found):
    scaler = found.__dict__.setdefault("scaler", torch.amp.GradScaler("cpu", init_scale=256.0))
    scaler.scale(found.loss()).backward()
    scaler.step(found.trainer)
    scaler.update()
    found.optimizer.zero_grad()


def noisy(found):
    found.loss().backward()
    for parameter in found.program.parameters():
        parameter.data.add_(0.01)  # torch does not count such writes
        parameter.grad.add_(1e-3)
    found.trainer.step()
    found.optimizer.zero_grad()


@pytest.mark.parametrize("step", [clipped, accumulated, scaled, noisy])
def test_loops_see_dense_weights_and_gradients(step):
    stepped, masked = (loop(optimizer=adamw, compact=compact).run(step=step) for compact in ("always", "never"))
    for name, value in masked.program.state_dict().items():
        assert torch.equal(stepped.program.state_dict()[name], value), name
    for name, mask in stepped.program.masks().items():
        assert not stepped.program.get_parameter(name)[~mask].any()


def test_several_optimizers_and_weights_without_gradients():
    results = []
    for compact in ("always", "never"):
        program = traced().clone().train()
        first, *others = program.parameters()
        optimizers = [torch.optim.SGD([first], lr=0.05, momentum=0.9), torch.optim.AdamW(others, lr=1e-3)]
        trainer = sp.attach(
            sp.methods.rigl(density=0.3, update_every=3), program, optimizers, total_steps=12, compact=compact
        )
        for step in range(12):
            x, y = digits(64)
            nn.functional.cross_entropy(program(x.double()), y).backward()
            if step == 4:
                others[0].grad = None
            trainer.step()
            trainer.zero_grad()
        results.append(program.state_dict())
    assert all(map(torch.equal, results[0].values(), results[1].values()))


def test_sparse_gradients_are_stepped_dense():
    torch.manual_seed(0)
    traced_once = sp.trace(nn.Embedding(64, 32, sparse=True), (torch.arange(4),)).train()
    program = sp.Pipeline.parse("insert-masks{density=0.25 weights=weight}")(traced_once)
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1, momentum=0.9)
    trainer = sp.attach(sp.methods.static_random(density=0.25), program, optimizer, total_steps=4, compact="always")
    for _ in range(2):
        program(torch.arange(4)).sum().backward()
        assert program.get_parameter("weight").grad.is_sparse
        trainer.step()
        optimizer.zero_grad()
    assert optimizer.state[program.get_parameter("weight")]["momentum_buffer"].shape == (64, 32)


def test_a_step_that_fails_leaves_dense_weights():
    found = loop(optimizer=adamw).run(3)
    shapes = {name: weight.shape for name, weight in found.program.named_parameters()}
    found.optimizer.param_groups[0]["lr"] = "much"
    found.loss().backward()
    with pytest.raises(Exception):  # ruff: ignore[assert-raises-exception] what torch raises
        found.trainer.step()
    assert {name: weight.shape for name, weight in found.program.named_parameters()} == shapes
    assert all(weight.grad is None or weight.grad.shape == weight.shape for weight in found.program.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_skipped(value):
    found = loop(optimizer=adamw).run(4)
    found.loss().backward()
    before = copy.deepcopy(found.program.state_dict())
    weight = found.program.get_parameter("wide.weight")
    weight.grad[found.program.mask("wide.weight").nonzero()[0].unbind()] = value
    with pytest.warns(TrainingWarning, match="not finite"):
        found.trainer.step()
    assert all(torch.equal(found.program.state_dict()[name], old) for name, old in before.items())
    assert found.trainer.counts["skipped_steps"] == 1


def test_a_copy_of_a_trainer_continues_alone():
    found = loop(optimizer=adamw).run(5)
    made = copy.deepcopy(found)
    found.run(STEPS - 5), made.run(STEPS - 5)
    assert_same(made, found, bits=True)
    assert sizes(made) == active(made.program)


def test_weights_with_random_masks_are_left_out():
    found = loop("cigl(set)", optimizer=adamw).run(3)
    hidden = {site.weight for site in found.program.random_mask_sites()}
    assert hidden
    assert all("steps its active positions" not in found.trainer.forms[name] for name in hidden)
