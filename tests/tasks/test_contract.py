"""`check_task` passes every task of the package, and finds each broken promise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from sparsify.errors import TaskError
from sparsify.tasks import TASKS, Custom, Regression, build, check_task
from sparsify.tasks.contract import check_task as exported

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(8, generator=G), torch.randn(8, generator=G)
SAMPLES = {
    "classification": (torch.randn(8, 3, generator=G), torch.arange(8) % 3),
    "binary": (X[:, None], torch.arange(8) % 2),
    "multilabel": (torch.randn(8, 3, generator=G), torch.randint(2, (8, 3), generator=G)),
    "regression": (X, Y),
    "dense": (torch.randn(8, 3, 4, generator=G), torch.randint(3, (8, 4), generator=G)),
    "sequence": (torch.randn(8, 4, 3, generator=G), torch.randint(3, (8, 4), generator=G)),
    "custom": ({"mean": X}, {"y": Y}),
}


def task_of(name):
    return Custom(criterion=lambda o, t: (o["mean"] - t["y"]).abs().mean()) if name == "custom" else build(name)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_keeps_its_promises(name):
    assert exported is check_task
    check_task(task_of(name), *SAMPLES[name])


@pytest.mark.parametrize("name", [name for name in TASKS if name != "custom"])
def test_figures_and_losses_do_not_depend_on_the_size_of_a_batch_of_copies(name):
    task, (output, target) = build(name), SAMPLES[name]
    twice = torch.cat([output, output]), torch.cat([target, target])
    assert torch.allclose(task.loss(*twice), task.loss(output, target))
    assert task.figures(*twice) == pytest.approx(task.figures(output, target))


class Draws(Regression):
    def loss(self, output, target, **given):
        return super().loss(output, target, **given) * torch.rand(())


class Detached(Regression):
    def loss(self, output, target, **given):
        return super().loss(output.detach(), target, **given)


class Elementwise(Regression):
    def loss(self, output, target, **given):
        return (output - target) ** 2


class Flat(Regression):
    def loss(self, output, target, **given):
        return (output * 0).sum()


class NoFigures(Regression):
    def figures(self, output, target):
        return {}


class TensorFigures(Regression):
    def figures(self, output, target):
        return {"r2": output.mean()}


class Ordered(Regression):
    def figures(self, output, target):
        return {"first": float(output[0])}


class Refuses(Regression):
    def problem(self, target, shape):
        return "the day is wrong"


class Writes(Regression):
    def figures(self, output, target):
        target += 1
        return {"a": 1.0}


class HalfDecided(Regression):
    def scores(self, output):
        return torch.stack([output, -output], 1)


class FloatAnswers(HalfDecided):
    def answers(self, target):
        return target


class FarAnswers(HalfDecided):
    def answers(self, target):
        return torch.full((8,), 2)


class Strict(Regression):
    def imitation(self, output, teacher, target=None, *, temperature=1.0):
        return (output - teacher + 1).abs().mean()


class Otherwise(Regression):
    def figures(self, output, target):
        return {"mae": super().figures(output, target)["mae"]}


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (Draws, "differs from call to call"),
        (Detached, "has no gradient"),
        (Elementwise, "not a scalar"),
        (Flat, "gradient of loss"),
        (NoFigures, "figures.. is empty"),
        (TensorFigures, "names to floats"),
        (Ordered, "depends on the order"),
        (Refuses, "rejects targets that fit: the day is wrong"),
        (Writes, "changes the tensors"),
        (HalfDecided, "both be None"),
        (FloatAnswers, "a row per decision"),
        (FarAnswers, "a column of scores"),
        (Strict, "imitation.. of equal answers should be 0"),
        (Otherwise, "resampled.. of every sample once is .*'mae' is"),
    ],
)
def test_a_broken_promise_is_named(cls, words):
    with pytest.raises(TaskError, match=words):
        check_task(cls(), X.clone(), Y.clone())


def test_something_else_is_no_task():
    @dataclass(frozen=True)
    class Alike:
        name: ClassVar = "alike"

    with pytest.raises(TaskError, match=r"Derive it from Task\.|is a sparsify.tasks.Task"):
        check_task(Alike(), X, Y)  # type: ignore[arg-type]
