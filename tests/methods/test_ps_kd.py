"""PS-KD: the weight by hand, the moving teacher, what it refuses, and the baseline if its weight is 0."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import RecipeError, TrainingError
from sparsify.parts.distillation import SelfDistillation, distillation_loss
from tests.cases import digits

X, Y = digits(64)
STEPS = 16


@functools.cache
def network():
    """Traced once; every run takes a copy."""
    torch.manual_seed(1)
    layers = [nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)]
    return sp.trace(nn.Sequential(nn.Flatten(), *layers), (X[:16],))


def attached(name, given=None, **options):
    program = network().clone().train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.05, momentum=0.9)
    method = sp.methods.build(name, {"density": 0.2, "update_every": 3, **(given or {})})
    given = {"epoch_steps": 4, **options}
    return program, sp.attach(method, program, optimizer, total_steps=STEPS, seed=3, **given)


def step(program, trainer):
    batch = slice(16 * (trainer.steps % 4), 16 * (trainer.steps % 4) + 16)
    loss = trainer.loss(program(X[batch]), Y[batch], inputs=X[batch])
    loss.backward()
    trainer.step()
    trainer.optimizer.zero_grad()
    return float(loss.detach())


def test_the_weight_grows_by_interval():
    # 10 steps in intervals of 4: three intervals, of which the first has no teacher
    plan = SelfDistillation(0.6, 4)
    weights = [plan.weight_at(step, 4, 10) for step in range(1, 11)]
    assert weights == pytest.approx([0.0] * 4 + [0.4] * 4 + [0.6] * 2)
    assert plan.weight_at(13, 4, 10) == 0.6


def test_the_teacher_is_the_model_of_the_end_of_the_previous_epoch():
    program, trainer = attached("ps-kd(rigl)", {"ps-kd": {"weight": 0.8}})
    plain, other = attached("rigl")
    for _ in range(4):
        assert step(program, trainer) == step(plain, other)
    assert trainer.counts["forwards"] == 4 and trainer.readings() == {"past_weight": 0.0}
    teacher = program.clone().eval()
    for _ in range(4):
        with torch.no_grad():
            copy = program.clone().train()
            batch = slice(16 * (trainer.steps % 4), 16 * (trainer.steps % 4) + 16)
            logits, answer = copy(X[batch]), teacher(X[batch])
        own = nn.functional.cross_entropy(logits, Y[batch])
        wanted = 0.6 * own + 0.4 * distillation_loss(logits, answer, 1.0)
        assert step(program, trainer) == pytest.approx(float(wanted), rel=1e-5)
    assert trainer.counts["forwards"] == 12 and trainer.counts["backwards"] == 8
    assert trainer.readings() == {"past_weight": pytest.approx(0.4)}
    for _ in range(8):
        step(program, trainer)
    assert trainer.readings() == {"past_weight": pytest.approx(0.8)}


def test_its_gradient_is_that_of_cross_entropy_to_the_mixed_target():
    generator = torch.Generator().manual_seed(0)
    logits, past = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.arange(6) % 4
    logits.requires_grad_()
    joined = SelfDistillation(0.8, 1).joined(
        nn.functional.cross_entropy(logits, labels), distillation_loss(logits, past, 1.0), 0.3
    )
    target = 0.7 * nn.functional.one_hot(labels, 4).double() + 0.3 * past.softmax(1)
    wanted = nn.functional.cross_entropy(logits, target)
    found = [torch.autograd.grad(loss, logits)[0] for loss in (joined, wanted)]
    assert torch.allclose(*found, atol=1e-12)
    entropy = -(past.softmax(1) * past.log_softmax(1)).sum(1).mean()
    assert float(wanted.detach()) == pytest.approx(float((joined + 0.3 * entropy).detach()))


@pytest.mark.parametrize("name", ["rigl", "gmp"])
def test_a_weight_of_0_is_the_base_bit_for_bit(name):
    program, trainer = attached(f"ps-kd({name})", {"ps-kd": {"weight": 0.0}})
    plain, other = attached(name)
    for _ in range(STEPS):
        assert step(program, trainer) == step(plain, other)
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in program.state_dict().items())
    assert trainer.counts == other.counts


def test_an_interval_of_its_own_needs_no_epoch():
    program, trainer = attached("ps-kd(rigl)", {"ps-kd": {"snapshot_every": "25%"}}, epoch_steps=None)
    assert trainer.schedule["self_distillation.snapshot_every"] == 4
    for _ in range(5):
        step(program, trainer)
    assert trainer.readings() == {"past_weight": pytest.approx(0.4)}
    with pytest.raises(TrainingError, match=r"give sparsify.attach epoch_steps=len\(loader\).*or set snapshot_every"):
        attached("ps-kd(rigl)", epoch_steps=None)


def test_an_unknown_class_is_not_compared():
    program, trainer = attached("ps-kd(widened(rigl))")
    for _ in range(STEPS):
        assert step(program, trainer) > 0


def test_the_inputs_are_asked_for_from_the_first_step_on():
    program, trainer = attached("ps-kd(rigl)")
    with pytest.raises(TrainingError, match=r"call trainer.loss\(program\(x\), y, inputs=x\)"):
        trainer.loss(program(X[:16]), Y[:16])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ps-kd(distilled(dense))", "learns from a teacher already"),
        ("distilled(ps-kd(dense))", "it cannot have another teacher"),
        ("ps-kd(focal(dense))", "has a loss of its own already"),
        ("focal(ps-kd(dense))", "learns from its own past predictions, which is defined for the loss of the task only"),
        ("moon(ps-kd(dense))", "learns from its own past predictions"),
    ],
)
def test_another_teacher_or_loss_is_refused_in_either_order(text, message):
    with pytest.raises(RecipeError, match=message):
        sp.methods.build(text, {})


@pytest.mark.parametrize("options", [{"weight": -0.1}, {"weight": 1.1}, {"snapshot_every": -1}])
def test_options_out_of_range(options):
    with pytest.raises(RecipeError, match="should be"):
        sp.methods.build("ps-kd(dense)", {"ps-kd": options})
