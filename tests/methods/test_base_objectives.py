"""Wrappers with a loss of their own: the loss, what they refuse, and training with each of them."""

from __future__ import annotations

import functools
import io
import json

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import RecipeError, TrainingError
from sparsify.parts import calibrating_losses as losses
from tests.cases import digits

X, Y = digits(64)
TEACHER = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
STEPS = 12
DEFAULTS = {
    "label-smoothing": lambda z, y: nn.functional.cross_entropy(z, y, label_smoothing=0.05),
    "maxsup": lambda z, y: losses.maxsup(z, y, 0.1),
    "focal": lambda z, y: losses.focal(z, y, gamma=3.0),
    "dual-focal": lambda z, y: losses.dual_focal(z, y, gamma=5.0),
    "mbls": lambda z, y: losses.mbls(z, y, weight=0.1, margin=10.0),
    "acls": lambda z, y: losses.acls(z, y, weight=0.1, margin=10.0, positive=1.0, negative=0.1),
    "mmce": lambda z, y: losses.mmce(z, y, weight=2.0, width=0.4),
    "logit-norm": lambda z, y: losses.logit_norm(z, y, temperature=0.04),
}
CHOSEN = {
    "focal": ({"hard_gamma": 5.0, "hard_below": 0.3}, {"gamma": 3.0, "hard_gamma": 5.0, "hard_below": 0.3}),
    "acls": ({"margin": 1.0, "relative": True}, {"weight": 0.1, "margin": 1.0, "relative": True}),
    "mmce": ({"squared": True, "weight": 1.0}, {"squared": True, "weight": 1.0}),
    "mbls": ({"margin": 0.5, "weight": 1.0}, {"margin": 0.5, "weight": 1.0}),
}


@functools.cache
def traced():
    """Traced once; every test takes a copy."""
    torch.manual_seed(1)
    layers = [nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)]
    return sp.trace(nn.Sequential(nn.Flatten(), *layers), (X[:16],))


def attached(name, given=None, **options):
    program = traced().clone().train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.05, momentum=0.9)
    method = sp.methods.build(name, {"density": 0.2, **(given or {})})
    teacher = {"teacher": TEACHER} if method.distillation else {}
    return (
        program,
        optimizer,
        sp.attach(method, program, optimizer, total_steps=STEPS, seed=3, epoch_steps=4, **teacher, **options),
    )


def run(program, optimizer, trainer, steps):
    for _ in range(steps):
        batch = slice(16 * (trainer.steps % 4), 16 * (trainer.steps % 4) + 16)

        def again(batch=batch):
            return trainer.loss(program(X[batch]), Y[batch], inputs=X[batch])

        again().backward()
        trainer.step(again)
        optimizer.zero_grad()


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_loss_of_each(name):
    method = sp.methods.build(f"{name}(rigl)", {"density": 0.1})
    assert method.tasks == ("classification",) and method.topology is not None
    objective, logits = method.objective(9), torch.randn(8, 4, generator=torch.Generator().manual_seed(0)) * 5
    state = objective.observe(logits, Y[:8] % 4, objective.init(), 1)
    assert torch.equal(objective.loss(logits, Y[:8] % 4, state), DEFAULTS[name](logits, Y[:8] % 4))
    assert objective.readings(state) == {}


@pytest.mark.parametrize("name", CHOSEN)
def test_options_reach_the_loss(name):
    given, expected = CHOSEN[name]
    objective = sp.methods.build(f"{name}(dense)", {name: given}).objective(9)
    logits, labels = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)) * 5, Y[:8] % 4
    assert torch.equal(objective.loss(logits, labels, {}), getattr(losses, name)(logits, labels, **expected))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("label-smoothing", {"smoothing": 1.0}, r"label-smoothing: smoothing should be a share of the label in \[0, 1\), found 1\.0"),
        ("label-smoothing", {"smoothing": -0.1}, "smoothing should be a share"),
        ("label-smoothing", {"smoothing_end": 1.5}, "smoothing_end should be a share"),
        ("maxsup", {"weight": -1.0}, "^weight should be between"),
        ("maxsup", {"weight_end": float("inf")}, "^weight_end should be between"),
        ("focal", {"gamma": -0.5}, "^gamma should be between"),
        ("focal", {"hard_gamma": float("nan")}, "^hard_gamma should be between"),
        ("focal", {"hard_below": 1.2}, "^hard_below should be between"),
        ("focal", {"hard_below": 0.3}, "without hard_gamma all samples have the same exponent"),
        ("dual-focal", {"gamma": float("inf")}, "^gamma should be between"),
        ("mbls", {"weight": -0.1}, "^weight should be between"),
        ("mbls", {"margin": -1.0}, "^margin should be between"),
        ("acls", {"margin": float("nan")}, "^margin should be between"),
        ("acls", {"positive": -1.0}, "^positive should be between"),
        ("acls", {"negative": -1.0}, "^negative should be between"),
        ("acls", {"relative": 1.0}, "relative should be True or False"),
        ("mmce", {"weight": float("inf")}, "^weight should be between"),
        ("mmce", {"width": 0.0}, "^width should be between"),
        ("logit-norm", {"temperature": 0.0}, "^temperature should be between"),
    ],
)  # fmt: skip
def test_options_out_of_range(name, given, message):
    with pytest.raises(RecipeError, match=message):
        sp.methods.build(f"{name}(rigl)", {"density": 0.1, name: given})


@pytest.mark.parametrize("name", DEFAULTS)
def test_two_losses_are_refused_in_either_order(name):
    other = "mbls" if name != "mbls" else "focal"
    for text in (f"{name}({other}(rigl))", f"{name}(moon(rigl))", f"moon({name}(rigl))"):
        with pytest.raises(RecipeError, match="has a loss of its own already; wrap a method without one"):
            sp.methods.build(text, {"density": 0.1})


def test_other_tasks_are_refused_before_training():
    for name in DEFAULTS:
        assert sp.methods.build(f"averaged({name}(rigl))", {"density": 0.1}).tasks == ("classification",)
    torch.manual_seed(0)
    for task, outputs in (("binary", 1), ("multilabel", 4), ("regression", 1)):
        program = sp.trace(nn.Linear(8, outputs), (torch.rand(4, 8),), task=task).train()
        optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
        with pytest.raises(TrainingError, match=rf"'focal\(dense\)' is made for the task classification.*'{task}'"):
            sp.attach(sp.methods.focal(sp.methods.dense()), program, optimizer, total_steps=4)
    with pytest.raises(RecipeError, match="made for the task regression, its wrapper for classification"):
        sp.methods.focal(sp.methods.Method(name="mine", density=1.0, initial="dense", tasks=("regression",)))


def test_a_target_of_probabilities_is_refused():
    program, _, trainer = attached("mmce(static)")
    with pytest.raises(TrainingError, match=r"takes logits \[N, K\] and class numbers"):
        trainer.loss(program(X[:16]), torch.full((16, 10), 0.1))


def test_smoothing_of_the_task_s_loss_beside_it_is_refused():
    program, _, trainer = attached("label-smoothing(static)")
    with pytest.raises(TrainingError, match=r"has a loss of its own, which label-smoothing 0\.1 would not enter"):
        trainer.loss(program(X[:16]), Y[:16], label_smoothing=0.1)


def test_a_constant_share_trains_as_smoothing_of_the_task_s_loss_does_bit_for_bit():
    one, optimizer, trainer = attached(
        "label-smoothing(set)", {"update_every": 3, "label-smoothing": {"smoothing": 0.1}}
    )
    run(one, optimizer, trainer, STEPS)
    two, optimizer, trainer = attached("set", {"update_every": 3})
    for step in range(STEPS):
        batch = slice(16 * (step % 4), 16 * (step % 4) + 16)
        trainer.loss(two(X[batch]), Y[batch], label_smoothing=0.1).backward()
        trainer.step()
        optimizer.zero_grad()
    assert all(torch.equal(value, two.state_dict()[key]) for key, value in one.state_dict().items())


@pytest.mark.parametrize("name", DEFAULTS)
def test_it_trains_around_other_wrappers_and_a_resumed_run_has_the_same_bits(name):
    text = f"distilled(averaged({name}(agent(set))))"
    given = {"update_every": 3, "averaged": {"start_at": 9, "average_every": 1}, "agent": {"snapshot": "running"}}
    if name == "label-smoothing":
        given[name] = {"smoothing": 0.2, "smoothing_end": 0.0}
    program, optimizer, trainer = attached(text, given)
    active = program.costs().active
    run(program, optimizer, trainer, 7)
    file = io.BytesIO()
    torch.save([program.state_dict(), optimizer.state_dict(), trainer.state_dict()], file)
    run(program, optimizer, trainer, STEPS - 7)
    assert program.costs().active == active and trainer.counts["probes"]
    file.seek(0)
    weights, moments, state = torch.load(file, weights_only=True)
    resumed, optimizer, again = attached(text, given)
    resumed.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    again.load_state_dict(state)
    run(resumed, optimizer, again, STEPS - 7)
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in program.state_dict().items())
    assert again.readings() == trainer.readings() and json.dumps(again.readings())


def test_an_unknown_class_is_one_of_the_classes_of_the_loss():
    program, optimizer, trainer = attached("label-smoothing(widened(static))", {"label-smoothing": {"smoothing": 0.11}})
    logits = program(X[:16])
    assert logits.shape == (16, 11)
    assert torch.equal(trainer.loss(logits, Y[:16]), losses.label_smoothing(logits, Y[:16], 0.11))
    optimizer.zero_grad()
