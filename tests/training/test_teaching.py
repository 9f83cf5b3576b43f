"""A teacher in a loop: what it adds to the loss, what is counted, and what is refused with what to do."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import TrainingError
from sparsify.parts.distillation import distillation_loss
from sparsify.tasks import build
from tests.cases import digits
from tests.training.test_meaning import CASES, MADE, traced
from tests.training.test_meaning import X as INPUTS

X, Y = digits(32)


def linear(seed=1, classes=10):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


@functools.cache
def one_student():
    """Traced once; every student is a copy."""
    return sp.trace(linear(), (X,))


def attached(method, teacher):
    program = one_student().clone().train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    return program, sp.attach(method, program, optimizer, total_steps=4, teacher=teacher)


@pytest.mark.parametrize("name", ["distilled(dense)", "distilled(widened(dense))"])
def test_the_loss_is_joined_with_the_teacher_s_and_its_pass_counted(name):
    teacher = linear(seed=2).eval()
    program, trainer = attached(sp.methods.build(name, {"distilled": {"weight": 0.25, "temperature": 2.0}}), teacher)
    logits = program(X)
    own = nn.functional.cross_entropy(logits, Y)
    wanted = 0.75 * own + 0.25 * distillation_loss(logits[:, :10], teacher(X), 2.0)
    loss = trainer.loss(logits, Y, inputs=X)
    assert logits.shape[1] == (11 if "widened" in name else 10)
    assert torch.allclose(loss, wanted) and trainer.counts["forwards"] == 1
    loss.backward()
    trainer.step()
    assert trainer.counts["forwards"] == 2 and trainer.counts["backwards"] == 1
    assert all(p.grad is None for p in teacher.parameters())


def test_the_micro_batches_of_a_step_are_counted_as_one_batch():
    program, trainer = attached(sp.methods.build("distilled(dense)", {}), linear(seed=2).eval())
    for step in (1, 2):
        for x, y in zip(X.chunk(4), Y.chunk(4), strict=True):
            (trainer.loss(program(x), y, inputs=x) / 4).backward()
        trainer.step()
        trainer.optimizer.zero_grad()
        assert (trainer.counts["forwards"], trainer.counts["backwards"]) == (2 * step, step)


def test_a_student_of_weight_1_becomes_its_teacher():
    teacher = linear(seed=2).eval()
    program = one_student().clone().train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.5)
    method = sp.methods.distilled(sp.methods.dense(), weight=1.0, temperature=1.0)
    trainer = sp.attach(method, program, optimizer, total_steps=300, teacher=teacher)
    first = trainer.loss(program(X), Y, inputs=X).item()
    for _ in range(300):
        loss = trainer.loss(program(X), Y, inputs=X)
        loss.backward()
        trainer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.02 * first
    assert torch.allclose(program(X).softmax(1), teacher(X).softmax(1), atol=0.03)


DISTILLED = sp.methods.distilled(sp.methods.dense())


@pytest.mark.parametrize(
    ("method", "teacher", "message"),
    [
        (DISTILLED, None, "give sparsify.attach a teacher"),
        (sp.methods.dense(), linear(), "no use for a teacher. Leave it out"),
    ],
)
def test_a_teacher_is_given_where_it_is_needed(method, teacher, message):
    with pytest.raises(TrainingError, match=message):
        attached(method, teacher)


@pytest.mark.parametrize(
    ("teacher", "inputs", "message"),
    [
        (linear().eval(), None, r"call trainer.loss\(program\(x\), y, inputs=x\)"),
        (linear().train(), X, r"Call teacher.eval\(\) first"),
        (linear(classes=7).eval(), X, r"shape \[32, 10\], found \[32, 7\]"),
        (lambda x: {"logits": x}, X, "found dict"),
    ],
)
def test_what_a_teacher_cannot_be_asked_is_said(teacher, inputs, message):
    program, trainer = attached(DISTILLED, teacher)
    with pytest.raises(TrainingError, match=message):
        trainer.loss(program(X), Y, inputs=inputs)


def test_a_step_that_did_not_ask_the_teacher_is_refused():
    program, trainer = attached(DISTILLED, linear().eval())
    nn.functional.cross_entropy(program(X), Y).backward()
    with pytest.raises(TrainingError, match=r"Train with trainer.loss\(program\(x\), y, inputs=x\).backward\(\)"):
        trainer.step()


@pytest.mark.parametrize("name", [name for name in CASES if name != "custom"])
def test_a_student_of_any_task_comes_close_to_its_teacher(name):
    teacher = traced(name, seed=1).eval().clone()  # the models of the cases are shared
    program, target = traced(name, seed=2).train(), CASES[name][1]
    reads = build(name).output
    optimizer = torch.optim.AdamW(program.parameters(), lr=0.03, weight_decay=0.0)
    method = sp.methods.distilled(sp.methods.dense(), weight=1.0, temperature=2.0)
    trainer = sp.attach(method, program, optimizer, total_steps=40, teacher=lambda x: teacher.outputs(x)[reads])
    losses = []
    for _ in range(40):
        loss = trainer.loss(program(INPUTS), target, inputs=INPUTS)
        losses.append(loss.item())
        loss.backward()
        trainer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.2 * losses[0]
    assert trainer.counts["forwards"] == 80


def test_a_custom_task_has_no_teacher_and_says_so_before_training():
    program = traced("custom").train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    with pytest.raises(
        TrainingError, match=r"learns from a teacher, and task 'custom.* does not define how .*leave out distilled"
    ):
        sp.attach(DISTILLED, program, optimizer, total_steps=4, teacher=lambda x: x, task=MADE)
    assert not program.masks()


class Rebuilding(nn.Module):
    """Predicts, and returns what its loss reads beside."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(8, 4), nn.Linear(4, 1)

    def forward(self, x):
        code = self.body(x)
        return {"penalty": code.square().mean(1), "prediction": self.head(code)}


def test_a_regression_with_a_loss_of_its_own_learns_from_the_predictions_of_a_teacher():
    torch.manual_seed(0)
    own = sp.tasks.Regression(criterion=lambda found, y: found["penalty"].mean() + found["prediction"].abs().mean())
    program = sp.trace(Rebuilding(), (INPUTS[:4],), task=own).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    method = sp.methods.distilled(sp.methods.dense(), weight=0.25)
    trainer = sp.attach(method, program, optimizer, total_steps=4, teacher=lambda x: x.sum(1), task=own)
    found, target = program(INPUTS), CASES["regression"][1]
    wanted = 0.75 * own.loss(found, target) + 0.25 * nn.functional.mse_loss(found["prediction"][:, 0], INPUTS.sum(1))
    torch.testing.assert_close(trainer.loss(found, target, inputs=INPUTS), wanted)


def test_one_number_per_sample_may_have_a_dimension_of_its_own():
    program = traced("regression").train()  # [N, 1]
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    method = sp.methods.distilled(sp.methods.dense(), weight=1.0)
    trainer = sp.attach(method, program, optimizer, total_steps=4, teacher=lambda x: x.sum(1))
    loss = trainer.loss(program(INPUTS), CASES["regression"][1], inputs=INPUTS)
    assert torch.allclose(loss, nn.functional.mse_loss(program(INPUTS)[:, 0], INPUTS.sum(1)))
