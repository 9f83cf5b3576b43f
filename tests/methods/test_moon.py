"""MOON around real methods: the contracts with every pattern, resuming in every part of its schedule, and what it refuses."""

from __future__ import annotations

import dataclasses
import functools
import io

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import RecipeError, TrainingError
from sparsify.methods import moon, widened
from sparsify.methods.base import Averaging
from sparsify.parts.patterns import parse_pattern
from tests.cases import digits

STEPS = 40
BASES = {
    "rigl": lambda **o: sp.methods.rigl(update_every=5, **o),
    "set": lambda **o: sp.methods.set(update_every=5, **o),
}
PATTERNS = {"unstructured": 0.2, "nm:2:4": 0.5, "block:2x1": 0.25, "grouped:5": 0.25}


def model():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)
    )


@functools.cache
def traced():
    """Traced once; every test takes a copy."""
    return sp.trace(model(), (digits()[0],))


def attached(method, seed=7):
    program = traced().clone().train()
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(program.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    return program, optimizer, sp.attach(method, program, optimizer, total_steps=STEPS, seed=seed)


def run(program, optimizer, trainer, steps):
    x, y = digits(64)
    for _ in range(steps):
        batch = slice(16 * (trainer.steps % 4), 16 * (trainer.steps % 4) + 16)
        trainer.loss(program(x[batch]), y[batch]).backward()
        trainer.step()
        optimizer.zero_grad()
        yield trainer.steps


def finished(method, stop=None, seed=7):
    program, optimizer, trainer = attached(method, seed)
    list(run(program, optimizer, trainer, STEPS if stop is None else stop))
    if stop is None:
        trainer.finish([digits(64)[0]])
    return program, optimizer, trainer


def small(base, **options):
    return moon(base, warmup=6, alpha_every=4, average_from=32, average_every=2, **options)


def method_of(name, pattern, wrapper=small):
    keep = ("0.weight",) if pattern == "nm:2:4" else ()
    return wrapper(BASES[name](density=PATTERNS[pattern], pattern=pattern, keep_dense=keep))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", BASES)
def test_density_zeros_pattern_and_still_masks(name, pattern):
    program, optimizer, trainer = attached(method_of(name, pattern))
    kind, active, rounds = parse_pattern(pattern), program.costs().active, 0
    masks = {k: v.clone() for k, v in program.masks().items()}
    assert "5.unknown_logit.weight" not in masks, "one row, dense"
    for _ in run(program, optimizer, trainer, STEPS):
        assert program.costs().active == active
        for weight, mask in program.masks().items():
            assert not program.weight(weight).detach()[~mask].any()
            assert bool(mask.all()) or kind.holds(mask)
            assert trainer.counts["rounds"] > rounds or torch.equal(mask, masks[weight])
        rounds, masks = trainer.counts["rounds"], {k: v.clone() for k, v in program.masks().items()}
    assert rounds == 5
    trainer.finish([digits(64)[0]])
    assert all(not program.weight(weight).detach()[~mask].any() for weight, mask in program.masks().items())


CUTS = (3, 13, 35)
"""In the warm-up, between two alphas and in the middle of an interval, while averaging."""
INTERRUPTED = [
    (cut, tuple(BASES)[(i + j) % 2], pattern) for i, cut in enumerate(CUTS) for j, pattern in enumerate(PATTERNS)
]
"""Each cut with each pattern; each base with each cut and with each pattern."""


@pytest.mark.parametrize(("cut", "name", "pattern"), INTERRUPTED)
def test_same_seed_same_bits_and_resume(name, pattern, cut):
    program, *_ = finished(method_of(name, pattern))
    want = program.state_dict()
    again, *_ = finished(method_of(name, pattern))
    stopped, optimizer, trainer = finished(method_of(name, pattern), stop=cut)
    file = io.BytesIO()
    torch.save([stopped.state_dict(), optimizer.state_dict(), trainer.state_dict()], file)
    file.seek(0)
    weights, moments, state = torch.load(file, weights_only=True)
    resumed, optimizer, trainer = attached(method_of(name, pattern))
    resumed.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    trainer.load_state_dict(state)
    list(run(resumed, optimizer, trainer, STEPS - cut))
    trainer.finish([digits(64)[0]])
    for other in (again, resumed):
        assert all(torch.equal(value, want[key]) for key, value in other.state_dict().items())
    assert trainer.readings()["alpha"] == 1.0


def test_a_state_without_its_alpha_would_not_do():
    program, *_ = finished(method_of("rigl", "unstructured"))
    stopped, optimizer, trainer = finished(method_of("rigl", "unstructured"), stop=13)
    resumed, optimizer_again, trainer_again = attached(method_of("rigl", "unstructured"))
    resumed.load_state_dict(stopped.state_dict())
    optimizer_again.load_state_dict(optimizer.state_dict())
    fresh = attached(method_of("rigl", "unstructured"))[2].state_dict()["loss"]
    trainer_again.load_state_dict({**trainer.state_dict(), "loss": fresh})
    list(run(resumed, optimizer_again, trainer_again, STEPS - 13))
    trainer_again.finish([digits(64)[0]])
    assert not torch.equal(resumed.weight("5.weight"), program.weight("5.weight"))


@pytest.mark.parametrize("name", BASES)
def test_folding_preserves_outputs_and_inactive_weights_never_move_them(name):
    program, optimizer, _ = finished(method_of(name, "unstructured"))
    x, _ = digits(64)
    want = program.eval().outputs(x)
    have = sp.Pipeline.parse("fold-masks")(program).outputs(x)
    assert all(torch.equal(want[key], have[key]) for key in want)
    assert want["logits"].shape == (64, 10), "the unknown is never the prediction"
    optimizer.zero_grad()
    program.train()(x).sum().backward()
    for weight, mask in program.masks().items():
        assert not program.weight(weight).grad[~mask].any()


def test_alpha_follows_the_running_loss_of_this_run():
    program, optimizer, trainer = attached(small(sp.methods.rigl(density=0.2, update_every=5)))
    x, y = digits(64)
    running, seen = None, []
    for _ in range(STEPS):
        batch = slice(16 * (trainer.steps % 4), 16 * (trainer.steps % 4) + 16)
        logits = program(x[batch])
        p = logits.detach().softmax(1)
        s = float(((1 - p[:, 10]) * -p[torch.arange(16), y[batch]].log()).mean())
        running = s if running is None else 0.05 * s + 0.95 * running
        trainer.loss(logits, y[batch]).backward()
        trainer.step()
        optimizer.zero_grad()
        seen.append((running, trainer.readings()["alpha"]))
    first = seen[6][0] / 64  # step 7, the first after the warm-up of 6
    steps = [0.0] * 6 + [first + (1 - first) * (i // 4) / 8 for i in range(34)]  # ceil(34 / 4) = 9 intervals
    assert [alpha for _, alpha in seen] == pytest.approx(steps, abs=1e-6)


def test_widening_alone_is_cross_entropy_over_one_more_class():
    method = widened(sp.methods.rigl(density=0.2, update_every=5))
    assert method.name == "widened(rigl)" and method.objective is None and method.averaging is None
    program, _, trainer = attached(method)
    x, y = digits(64)
    logits = program(x)
    assert logits.shape == (64, 11)
    assert torch.equal(trainer.loss(logits, y), nn.functional.cross_entropy(logits, y))


def test_without_a_mask_the_classifier_grows_too():
    program, *_ = finished(moon(sp.methods.dense(), warmup=6, alpha_every=4, average=False))
    assert program.train()(digits()[0]).shape == (16, 11) and program.masks() == {}


def test_a_base_that_averages_keeps_its_own():
    base = dataclasses.replace(sp.methods.rigl(density=0.2), averaging=lambda total: Averaging(35, 3))
    assert moon(base).averaging(100) == Averaging(35, 3)
    assert moon(sp.methods.rigl(density=0.2)).averaging(1000) == Averaging(800, 10)
    assert moon(sp.methods.rigl(density=0.2), average=False).averaging is None


def test_averaging_before_the_topology_is_frozen_is_refused():
    with pytest.raises(TrainingError, match="still changes"):
        attached(moon(sp.methods.rigl(density=0.2, update_every=5, stop_at=0.9), warmup=6, alpha_every=4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup": 40}, "Train longer, or lower warmup"),
        ({"alpha_every": 0.99}, "alpha needs two"),
        ({"warmup": -1}, "warmup should be"),
        ({"smoothing": 0.0}, "smoothing should be between"),
        ({"alpha_final": -1.0}, "alpha_final should be"),
        ({"alpha_divisor": 0.0}, "alpha_divisor should be"),
        ({"score": "bogus"}, "^score should be known or odds, found 'bogus'"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(RecipeError, match=message):
        attached(moon(sp.methods.rigl(density=0.2, update_every=5), **options))


def test_the_score_of_a_widened_method_is_one_of_two():
    with pytest.raises(RecipeError, match=r"^score should be known or odds, found 'bogus'"):
        sp.methods.widened(sp.methods.static_random(density=0.5), score="bogus")


def test_two_losses_are_refused():
    once = moon(sp.methods.rigl(density=0.2))
    with pytest.raises(RecipeError, match="has a loss of its own already"):
        moon(once)
