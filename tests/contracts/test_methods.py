"""Every method × every pattern: what any method owes.

Density, zeros and pattern are looked at with SGD for every pair, and with AdamW, whose moments differ, for every method with two
patterns in turn, so that every pattern meets it with two methods or more. The other contracts are shown with SGD.
"""

from __future__ import annotations

import functools
import io
import math

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.methods import METHODS
from sparsify.methods.registry import layers
from sparsify.methods.registry import options as known_options
from sparsify.parts.patterns import Grouped, parse_pattern
from tests.cases import digits

ROUNDS = {
    "static": 0,
    "one-shot": 1,
    "gmp": 6,
    "set": 5,
    "rigl": 5,
    "itop": 7,
    "dst-ee": 5,
    "srigl": 5,
    "granet": 8,
    "ndsnn": 6,
}
SHRINKING = ("gmp", "one-shot", "granet", "imp", "ndsnn")
PATTERNS = {
    "unstructured": 0.2,
    "nm:2:4": 0.5,
    "block:2x1": 0.25,
    "grouped:5": 0.25,
    "grouped:2x4:l2": 0.25,
    "grouped:8:learned": 0.25,
    "fan-in": 0.25,
}
KEEP = {"nm:2:4": ("0.weight",)}
USUAL = {"srigl": "fan-in", "cigl(srigl)": "fan-in"}
"""The pattern of what is shown for one pattern, where it is not unstructured."""
NESTED = {
    "averaged(set)": ("unstructured",),
    "weight-dropout(gmp)": ("unstructured",),
    "cigl(rigl)": ("nm:2:4", "grouped:5"),
    "cigl(srigl)": ("fan-in",),
    "agent(set)": ("unstructured", "grouped:8:learned"),
    "agent(imp)": ("unstructured", "grouped:5"),
    "agent(cigl(set))": ("unstructured",),
    "cigl(agent(rigl))": ("unstructured", "nm:2:4", "grouped:5"),
    "moon(cigl(dst-ee))": ("unstructured", "nm:2:4", "grouped:5"),
    "distilled(rigl)": ("unstructured", "nm:2:4", "grouped:5"),
    "moon(agent(distilled(set)))": ("unstructured",),
    "distilled(acls(set))": ("unstructured", "grouped:5"),
    "balancing-act(gmp)": ("unstructured", "grouped:5"),
    "class-weighted(gmp)": ("unstructured", "block:2x1", "grouped:5"),
    "class-weighted(granet)": ("unstructured", "grouped:5"),
    "averaged(class-weighted(rigl))": ("unstructured",),
    "calirare(rigl)": ("unstructured", "nm:2:4", "grouped:5"),
    "calirare(mmce(agent(distilled(set))))": ("unstructured",),
    "mixup(set)": ("unstructured", "nm:2:4", "grouped:5"),
    "rankmixup(cigl(rigl))": ("unstructured", "grouped:5"),
    "cigl(ndsnn)": ("unstructured", "grouped:5"),
    "ps-kd(gmp)": ("unstructured", "grouped:5"),
    "ps-kd(rankmixup(rigl))": ("unstructured", "nm:2:4", "grouped:5"),
}
"""What wrappers are tried with: random masks, averages, corrections, objectives and teachers, each with rounds of another kind."""
BY_SALIENCY = ("class-weighted(gmp)", "class-weighted(granet)")
"""Those whose density is split over layers by gradients."""
ALONE = [name for name in METHODS if name != "dense"]
SPARSE = [*ALONE, *NESTED]
TRAINED = [  # every method unstructured and with every second pattern, every pattern with every second method
    *(
        (name, pattern)
        for index, name in enumerate(ALONE)
        for place, pattern in enumerate(PATTERNS)
        if (pattern == "fan-in" if name == "srigl" else pattern == "unstructured" or (index + place) % 2)
    ),
    *((name, pattern) for name, patterns in NESTED.items() for pattern in patterns),
]
TRIED = [
    *((*tried, "sgd") for tried in TRAINED),
    *(
        (name, USUAL.get(name, tuple(PATTERNS)[(index + step) % len(PATTERNS)]), "adamw")
        for index, name in enumerate(ALONE)
        for step in ((0,) if name in USUAL else (0, 3))
    ),
]
STEPS = 40
X, Y = digits(64)
TEACHER = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()


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


@functools.cache
def traced(build):
    """Traced once; every test takes a copy."""
    return sp.trace(build(), (X[:16],))


def attached(name, pattern, optimizer="sgd"):
    program = traced(hidden if "learned" in pattern else model).clone().train()
    torch.manual_seed(1)
    if optimizer == "sgd":
        opt = torch.optim.SGD(program.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    else:
        opt = torch.optim.AdamW(program.parameters(), lr=1e-3)
    options = {"density": PATTERNS[pattern], "pattern": pattern, "keep_dense": KEEP.get(pattern, ())}
    if "update_every" in known_options(layers(name)[-1]):
        options["update_every"] = 5
    if name in BY_SALIENCY:
        options["allocation"] = "global_saliency"
    if "balancing-act" in name:
        options["balancing-act"] = {"dense_recall": [1.0] * 10, "memory": 4, "start_at": 0, "dual_rate": 0.5}
    method = sp.methods.build(name, options)

    def sweep():
        generator = torch.Generator().manual_seed(trainer.steps)
        return (loss(trainer, index) for index in torch.randperm(4, generator=generator).tolist())

    given = {"teacher": TEACHER} if method.distillation else {}
    given |= {"calibration": lambda: (X[48:], Y[48:])} if method.individual else {}
    trainer = sp.attach(
        method, program, opt, total_steps=STEPS, seed=7, epoch_steps=6, sweep=sweep, compact="always", **given
    )
    return program, opt, trainer


def loss(trainer, index):
    batch = slice(16 * index, 16 * index + 16)
    x, y = trainer.prepare(X[batch], Y[batch])
    return lambda: trainer.loss(trainer.program(x), y, inputs=x)


def run(program, opt, trainer, steps):
    for _ in range(steps):
        again = loss(trainer, trainer.steps % 4)
        again().backward()
        trainer.step(again)
        opt.zero_grad()
        yield trainer.steps


def everything(program):
    return {name: value.clone() for name, value in program.state_dict().items()}


@pytest.mark.parametrize(("name", "pattern", "optimizer"), TRIED)
def test_exact_density_zeros_and_pattern_at_every_step(name, optimizer, pattern):
    program, opt, trainer = attached(name, pattern, optimizer)
    kind, before, rounds = parse_pattern(pattern), program.costs().active, 0
    for _ in run(program, opt, trainer, STEPS):
        masks = program.masks()
        for weight, mask in masks.items():
            assert not program.weight(weight).detach()[~mask].any()
            for value in opt.state[program.get_parameter(weight)].values():
                assert not isinstance(value, torch.Tensor) or value.shape != mask.shape or not value[~mask].any()
            assert bool(mask.all()) or kind.holds(mask)
        active = program.costs().active
        assert layers(name)[-1] in SHRINKING or active == before
        assert active <= before
        before, rounds = active, trainer.counts["rounds"]
    total = program.costs().maskable
    sizes = [kind.unit_size(tuple(mask.shape)) for mask in program.masks().values()]
    assert abs(before - round(PATTERNS[pattern] * total)) < max(sizes)
    prunings = 1 if pattern.startswith("nm") else math.ceil(math.log(PATTERNS[pattern]) / math.log(0.8))
    assert rounds == {**ROUNDS, "imp": prunings}[layers(name)[-1]]
    if isinstance(kind, Grouped):
        assert all(form.startswith("compact since step") for form in trainer.forms.values()), trainer.forms


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
    for end in (trainer, trainer_again, trainer_resumed):
        end.finish(X.split(16))
    assert trainer.counts == trainer_again.counts == trainer_resumed.counts
    want = everything(program)
    for other in (again, resumed):
        assert all(torch.equal(value, want[key]) for key, value in everything(other).items())


@pytest.mark.parametrize("name", SPARSE)
def test_inactive_weights_never_move_the_output_and_folding_preserves_it(name):
    program, opt, trainer = attached(name, USUAL.get(name, "unstructured"))
    list(run(program, opt, trainer, STEPS))
    before = program.costs().active
    trainer.finish(X.split(16))
    assert program.costs().active == before and not program.random_mask_sites()
    program.eval()
    want = program(X)
    folded = sp.Pipeline.parse("fold-masks")(program)
    assert torch.equal(folded(X), want)
    opt.zero_grad()
    program.train()(X).sum().backward()
    for weight, mask in program.masks().items():
        assert not program.weight(weight).grad[~mask].any()


@pytest.mark.parametrize("name", [name for name in NESTED if "agent" in name])
def test_probes_are_counted(name):
    program, opt, trainer = attached(name, "unstructured")
    list(run(program, opt, trainer, STEPS))
    corrected = STEPS - (trainer.counts["rounds"] if "rigl" in name else 0)  # RigL's rounds take the place of a step
    if "imp" in name:  # 9 trainings of 5 steps or fewer, each with a first snapshot and nothing to compare it with
        refreshes, compared = 9, 0
    else:
        refreshes, compared = 7, 6  # 6 steps apart, the first at the start; one that falls on a round waits a step
    evaluated, losses = corrected + 4 * refreshes, 4 * compared
    assert trainer.counts["probes"] == evaluated + losses
    answers = STEPS + evaluated + losses if "distilled" in name else 0  # the teacher answers with every pass
    answers += (
        STEPS + evaluated + losses + 2 if "calirare" in name else 0
    )  # so do features, and twice those of samples set aside
    assert trainer.counts["forwards"] == STEPS + evaluated + losses + answers
    assert trainer.counts["backwards"] == STEPS + evaluated


def test_dense_is_ordinary_training_bit_for_bit():
    x, y = digits(64)
    eager = model()
    plain = torch.optim.SGD(eager.parameters(), lr=0.05, momentum=0.9)
    program = sp.trace(model(), (x,)).train()
    opt = torch.optim.SGD(program.parameters(), lr=0.05, momentum=0.9, fused=False)
    trainer = sp.attach(sp.methods.dense(), program, opt, total_steps=10)
    for _ in range(10):
        for callee, optimizer, step in ((eager, plain, plain.step), (program, opt, trainer.step)):
            nn.functional.cross_entropy(callee(x), y).backward()
            step()
            optimizer.zero_grad()
    assert all(torch.equal(value, program.state_dict()[key]) for key, value in eager.state_dict().items())
