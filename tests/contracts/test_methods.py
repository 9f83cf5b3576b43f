"""Every method × every pattern: what any method owes."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.methods import METHODS
from sparsify.methods.registry import options as method_options
from sparsify.parts.patterns import parse_pattern
from tests.cases import digits

SPARSE = [name for name in METHODS if name != "dense"]
SHRINKING = ("gmp", "one-shot", "granet", "imp")
ROUNDS = {"static": 0, "one-shot": 1, "gmp": 6, "set": 5, "rigl": 5, "itop": 7, "dst-ee": 5, "srigl": 5, "granet": 8}
PATTERNS = {
    "unstructured": 0.2,
    "nm:2:4": 0.5,
    "block:2x1": 0.25,
    "grouped:5": 0.25,
    "grouped:2x4:l2": 0.25,
    "grouped:8:learned": 0.25,
    "fan-in": 0.25,
}
KEEP = {pattern: ("0.weight",) if pattern == "nm:2:4" else () for pattern in PATTERNS}
TRAINED = [(name, pattern) for name in SPARSE for pattern in PATTERNS if name != "srigl" or pattern == "fan-in"]
USUAL = {"srigl": "fan-in"}
"""The pattern of what is shown for one pattern, where it is not unstructured."""
STEPS = 40


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)
    )


def hidden() -> nn.Module:
    """Two layers whose order of outputs is free."""
    torch.manual_seed(1)
    layers = [nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 10)]
    return nn.Sequential(nn.Flatten(), *layers)


def attached(name, pattern, optimizer="sgd"):
    program = sp.trace(hidden() if "learned" in pattern else model(), (digits()[0],)).train()
    if optimizer == "sgd":
        opt = torch.optim.SGD(program.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    else:
        opt = torch.optim.AdamW(program.parameters(), lr=1e-3)
    options = {"density": PATTERNS[pattern], "pattern": pattern, "keep_dense": KEEP[pattern]}
    if "update_every" in method_options(name):
        options["update_every"] = 5
    return program, opt, sp.attach(sp.methods.build(name, options), program, opt, total_steps=STEPS, seed=7)


def run(program, opt, trainer, steps):
    x, y = digits(64)
    for _ in range(steps):
        batch = slice(16 * (trainer.steps % 4), 16 * (trainer.steps % 4) + 16)
        nn.functional.cross_entropy(program(x[batch]), y[batch]).backward()
        trainer.step()
        opt.zero_grad()
        yield trainer.steps


def everything(program):
    return {name: value.clone() for name, value in program.state_dict().items()}


@pytest.mark.parametrize(("name", "pattern"), TRAINED)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_exact_density_zeros_and_pattern_at_every_step(name, optimizer, pattern):
    program, opt, trainer = attached(name, pattern, optimizer)
    kind, before, rounds = parse_pattern(pattern), program.costs().active, 0
    for _ in run(program, opt, trainer, STEPS):
        masks = program.masks()
        for weight, mask in masks.items():
            assert not program.weight(weight).detach()[~mask].any()
            for value in opt.state[program.weight(weight)].values():
                assert value.shape != mask.shape or not value[~mask].any()
            assert bool(mask.all()) or kind.holds(mask)
        active = program.costs().active
        assert name in SHRINKING or active == before
        assert active <= before
        before, rounds = active, trainer.counts["rounds"]
    total = program.costs().maskable
    sizes = [kind.unit_size(tuple(mask.shape)) for mask in program.masks().values()]
    assert abs(before - round(PATTERNS[pattern] * total)) < max(sizes)
    prunings = 1 if pattern.startswith("nm") else math.ceil(math.log(PATTERNS[pattern]) / math.log(0.8))
    assert rounds == {**ROUNDS, "imp": prunings}[name]


@pytest.mark.parametrize("name", SPARSE)
def test_masks_are_still_between_rounds(name):
    program, opt, trainer = attached(name, USUAL.get(name, "unstructured"))
    rounds, masks = 0, {k: v.clone() for k, v in program.masks().items()}
    for _ in run(program, opt, trainer, STEPS):
        if trainer.counts["rounds"] == rounds:
            assert all(torch.equal(masks[k], v) for k, v in program.masks().items())
        rounds, masks = trainer.counts["rounds"], {k: v.clone() for k, v in program.masks().items()}


@pytest.mark.parametrize(("name", "pattern"), TRAINED)
def test_same_seed_same_bits_and_resume_in_the_middle(name, pattern):
    program, opt, trainer = attached(name, pattern)
    for step in run(program, opt, trainer, STEPS):
        if step == 13:
            file = io.BytesIO()
            torch.save([program.state_dict(), opt.state_dict(), trainer.state_dict()], file)
    again, opt_again, trainer_again = attached(name, pattern)
    list(run(again, opt_again, trainer_again, STEPS))
    resumed, opt_resumed, trainer_resumed = attached(name, pattern)
    file.seek(0)
    weights, moments, state = torch.load(file, weights_only=True)
    resumed.load_state_dict(weights)
    opt_resumed.load_state_dict(moments)
    trainer_resumed.load_state_dict(state)
    list(run(resumed, opt_resumed, trainer_resumed, STEPS - 13))
    want = everything(program)
    for other in (again, resumed):
        assert all(torch.equal(value, want[key]) for key, value in everything(other).items())


@pytest.mark.parametrize("name", SPARSE)
def test_inactive_weights_never_move_the_output_and_folding_preserves_it(name):
    program, opt, trainer = attached(name, USUAL.get(name, "unstructured"))
    list(run(program, opt, trainer, STEPS))
    x, _ = digits(64)
    program.eval()
    want = program(x)
    folded = sp.Pipeline.parse("fold-masks")(program)
    assert torch.equal(folded(x), want)
    opt.zero_grad()
    program.train()(x).sum().backward()
    for weight, mask in program.masks().items():
        assert not program.weight(weight).grad[~mask].any()


def test_dense_is_ordinary_training_bit_for_bit():
    x, y = digits(64)
    eager = model()
    plain = torch.optim.SGD(eager.parameters(), lr=0.05, momentum=0.9)
    program = sp.trace(model(), (x,)).train()
    opt = torch.optim.SGD(program.parameters(), lr=0.05, momentum=0.9)
    trainer = sp.attach(sp.methods.dense(), program, opt, total_steps=10)
    for _ in range(10):
        for callee, optimizer, step in ((eager, plain, plain.step), (program, opt, trainer.step)):
            nn.functional.cross_entropy(callee(x), y).backward()
            step()
            optimizer.zero_grad()
    assert all(torch.equal(value, program.state_dict()[key]) for key, value in eager.state_dict().items())
