"""Zeros whatever writes to the weights, averages and copies of a program, and attaches that fail."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import sparsify as sp
from sparsify.errors import AllocationError, PassError, PatternError, TrainingError
from tests.cases import ConvBn
from tests.training.loops import TRACED, X, loss, rigl, run, started, strays

# --- zeros, whatever writes


class Noisy(torch.optim.SGD):
    """Adds noise from its third step on, and writes every second step only."""

    taken = 0

    def step(self, closure=None):
        self.taken += 1
        if self.taken % 2:
            super().step()
            for group in self.param_groups if self.taken > 2 else ():
                for parameter in group["params"]:
                    parameter.data.add_(torch.randn_like(parameter), alpha=1e-3)


@pytest.mark.parametrize(
    "make", [lambda p: Noisy(p, lr=0.1), lambda p: torch.optim.SGD(p, lr=0.0, momentum=0.9, weight_decay=0.1)]
)
def test_density_is_what_the_weights_are_whatever_the_optimizer(make):
    program, optimizer, trainer = started(rigl(), make=make)
    for step in range(12):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * step  # a warm-up from 0
        loss(program).backward()
        for parameter in program.parameters():
            parameter.grad.add_(0.01)  # noise of the user's own, on inactive positions too
        trainer.step()
        optimizer.zero_grad()
        assert strays(program) == 0


@pytest.mark.parametrize("buffers", [False, True])
def test_averages_of_the_user_are_read_under_the_masks(buffers, tmp_path):
    torch.manual_seed(0)
    program, optimizer, trainer = started(rigl(update_every=2), program=sp.trace(ConvBn(), (X[:2],)))
    average = AveragedModel(program, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=buffers)
    for _ in range(12):
        run(program, optimizer, trainer, 1)
        average.update_parameters(program)
    mean = average.module
    assert (buffers or strays(mean) > 0) and trainer.counts["rounds"] == 4, "positions that were dropped have a mean"
    want = {name: mean.weight(name) * mask for name, mask in mean.masks().items()}
    clean = mean.clone()
    for name, value in want.items():
        clean.weight(name).data.copy_(value)
    torch.manual_seed(1)
    train = mean(X)
    torch.manual_seed(1)
    assert torch.equal(train, clean(X)), "update_bn runs the train phase"
    update_bn([X], average)
    assert strays(average.module.eval()) == 0
    assert all(torch.equal(average.module.weight(name), value) for name, value in want.items())
    if not buffers:
        assert average.module.costs().density == program.costs().density
    sp.export(average.module, tmp_path / "mean.onnx", inputs=[X], form="dense")


def test_values_loaded_into_the_program_are_read_under_its_masks():
    program, optimizer, trainer = started(rigl())
    run(program, optimizer, trainer, 4)
    own = {name: value.clone() for name, value in program.state_dict().items()}
    want = program.eval()(X)
    program.load_state_dict({n: v + 1.0 if n.endswith("weight") else v for n, v in own.items()})
    got = program(X)
    folded = sp.Pipeline.parse("fold-masks")(program)
    assert not torch.equal(got, want) and torch.equal(got, folded(X))
    program.load_state_dict(own)
    for name in program.masks():
        program.weight(name).data.add_(1.0)  # what torch does not count as a write
    assert torch.equal(program.eval()(X), got)


# --- gradients, whoever reads them


def test_a_gradient_is_masked_and_no_other_that_shares_its_memory():
    program, _, _ = started(rigl())
    name, weight = next((name, program.weight(name)) for name in program.masks())
    mask, other = program.mask(name), torch.zeros_like(program.weight(name)).requires_grad_()
    given = torch.rand_like(weight)
    torch.autograd.backward([weight + other], [given])  # both get the same tensor
    assert torch.equal(other.grad, given) and torch.equal(weight.grad, given * mask)
    joined = torch.zeros(2 * len(weight), *weight.shape[1:], requires_grad=True)
    weight.grad = None
    torch.autograd.backward([torch.cat([weight, weight]) + joined], [torch.cat([given, given])])
    assert torch.equal(joined.grad, torch.cat([given, given])) and torch.equal(weight.grad, 2 * given * mask)
    weight.grad = None
    weight.sum().backward()  # the gradient is one number, expanded
    assert torch.equal(weight.grad, mask.float())
    (taken,) = torch.autograd.grad(loss(program), [weight])
    assert not taken[~mask].any() and taken[mask].any()


def test_gradients_are_masked_of_moved_programs_and_dense_where_the_masks_are_gone():
    program, optimizer, trainer = started(rigl())
    program._apply(torch.clone)  # as a move to another device does
    for _ in range(2):
        loss(program).backward()
        for name, mask in program.masks().items():
            assert not program.weight(name).grad[~mask].any() and program.weight(name).grad[mask].any()
        trainer.step()
        optimizer.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.finish()
    masks = program.masks()
    sp.Pipeline.parse("fold-masks").apply(program)
    loss(program.train()).backward()
    assert any(program.weight(name).grad[~mask].any() for name, mask in masks.items())


# --- copies, and attaches that fail


@pytest.mark.parametrize("order", ["program first", "optimizer first", "trainer"])
def test_copies_of_program_and_optimizer_stay_linked(order):
    program, optimizer, trainer = started(rigl())
    run(program, optimizer, trainer, 2)
    parts = {
        "program first": (program, optimizer, trainer),
        "optimizer first": (optimizer, trainer, program),
        "trainer": trainer,
    }[order]
    copied = copy.deepcopy(parts)
    other = copied if order == "trainer" else copied[order.startswith("program") + 1]
    frozen = {name: value.clone() for name, value in program.state_dict().items()}
    run(other.program, other.optimizer, other, 10)
    assert all(torch.equal(value, frozen[name]) for name, value in program.state_dict().items())
    run(program, optimizer, trainer, 10)
    assert all(torch.equal(value, program.state_dict()[name]) for name, value in other.program.state_dict().items())
    assert other.counts == trainer.counts and trainer.counts["rounds"] == 2
    if order != "trainer":
        assert other.program is copied[0 if order == "program first" else 2]
    with pytest.raises(TrainingError, match="called by the loop"):
        other.optimizer.step()


def test_copies_before_attach_stay_linked():
    program = TRACED.clone().train()
    program, optimizer = copy.deepcopy((program, torch.optim.SGD(program.parameters(), lr=0.1)))
    before = program.weight("1.weight").detach().clone()
    run(program, optimizer, sp.attach(rigl(), program, optimizer, total_steps=12), 2)
    assert not torch.equal(program.weight("1.weight"), before)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"keep_dense": ("nowhere",)}, PassError),
        ({"pattern": "block:7x7"}, PatternError),
        ({"update_every": 100}, TrainingError),
        ({"density": 1e-6}, AllocationError),
    ],
)
def test_an_attach_that_fails_leaves_everything_as_it_was(options, error):
    program = TRACED.clone().train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1, momentum=0.9)
    loss(program).backward()
    optimizer.step()
    optimizer.zero_grad()
    text, state = program.text(), {name: value.clone() for name, value in program.state_dict().items()}
    momentum = {p: s["momentum_buffer"].clone() for p, s in optimizer.state.items()}
    parameters = list(program.parameters())
    for method in (rigl(**options), sp.methods.widened(sp.methods.cigl(rigl(**options)))):
        with pytest.raises(error):
            sp.attach(method, program, optimizer, total_steps=12)
        assert program.text() == text and program.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in program.state_dict().items())
        assert all(mine is before for mine, before in zip(program.parameters(), parameters, strict=True))
        assert all(torch.equal(optimizer.state[p]["momentum_buffer"], value) for p, value in momentum.items())
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(parameters)
    loss(program).backward()
    optimizer.step()  # no trainer watches it
    optimizer.zero_grad()
    again = sp.attach(rigl(), program, optimizer, total_steps=12)
    with warnings.catch_warnings():
        run(program, optimizer, again, 12)
    assert again.counts["rounds"] == 2 and strays(program) == 0


def test_statistics_that_training_does_not_move_are_not_estimated_again():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8, momentum=0.0), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)]
    method = sp.methods.averaged(sp.methods.static_random(density=0.3), start_at="50%")
    program, optimizer, trainer = started(method, program=sp.trace(nn.Sequential(*layers), (X[:2],)))
    run(program, optimizer, trainer, 12)
    trainer.finish()
    assert torch.equal(program.get_buffer("1.running_mean"), torch.zeros(8))
    assert torch.equal(program.get_buffer("1.running_var"), torch.ones(8)) and bool(program.eval()(X).isfinite().all())
