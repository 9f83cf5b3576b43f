"""Tasks in training: their loss, their figures, and the methods that are made for some of them."""

from __future__ import annotations

import copy
import functools
import json
import math

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import RecipeError, TaskError, TrainingError
from sparsify.parts.samples import TensorSamples
from sparsify.passes import fit_scale
from sparsify.tasks import Custom, Regression, build
from sparsify.training import Settings, train
from sparsify.training.rehearsal import rehearse

G = torch.Generator().manual_seed(0)
X = torch.randn(96, 8, generator=G)
W = torch.randn(8, 6, generator=G)
Z = X @ W


class Net(nn.Module):
    def __init__(self, shape) -> None:
        super().__init__()
        self.body, self.head, self.shape = nn.Linear(8, 16), nn.Linear(16, math.prod(shape)), shape

    def forward(self, x):
        return self.head(torch.relu(self.body(x))).reshape(-1, *self.shape)


class Spread(Net):
    """A mean and a log-variance."""

    def forward(self, x):
        found = super().forward(x)
        return {"mean": found[:, 0], "spread": found[:, 1]}


def spread_loss(output, target):
    return (0.5 * (output["mean"] - target) ** 2 * (-output["spread"]).exp() + 0.5 * output["spread"]).mean()


def spread_figures(output, target):
    return {"bias": float((output["mean"] - target).mean().abs())}


MADE = Custom(criterion=spread_loss, measure=spread_figures, lower_is_better="bias")
CASES = {
    "classification": (Net((3,)), Z[:, :3].argmax(1)),
    "binary": (Net(()), Z[:, 0] > 0),
    "multilabel": (Net((3,)), (Z[:, :3] > 0).long()),
    "regression": (Net((1,)), Z[:, 0]),
    "dense": (Net((3, 2)), Z.reshape(-1, 3, 2).argmax(1)),
    "sequence": (Net((2, 3)), Z.reshape(-1, 2, 3).argmax(2)),
    "custom": (Spread((2,)), Z[:, 0]),
}


def traced(name, seed=0):
    """A copy of the program of a case; each is traced once."""
    program = made_once(name, seed).clone()
    torch.manual_seed(seed)
    return program


@functools.cache
def made_once(name, seed):
    torch.manual_seed(seed)
    model = CASES[name][0]
    for module in (model.body, model.head):
        module.reset_parameters()
    return sp.trace(model, (X[:4],), task=name).clone()  # the model is shared between seeds


@pytest.mark.parametrize("name", CASES)
def test_every_task_trains_sparse_and_is_told_in_the_history(name, tmp_path):
    task, program, samples = MADE if name == "custom" else build(name), traced(name), TensorSamples(X, CASES[name][1])
    settings = Settings(epochs=8, batch_size=16, lr=0.05, workers=0, device="cpu")
    trained = train(
        sp.methods.rigl(density=0.4, stop_at=30, update_every=10),
        program,
        samples,
        samples,
        settings,
        folder=tmp_path,
        key="k",
        task=task,
    )
    first, last = trained.history[0], trained.history[-1]
    assert last["val_loss"] < first["val_loss"]
    output = program.reading(task.output, "eval", program.run_phase("eval", X))
    figures = task.figures(output, CASES[name][1])
    assert {f"val_{key}": value for key, value in figures.items()} == pytest.approx(
        {key: value for key, value in last.items() if key.startswith("val_") and key != "val_loss"}, rel=1e-5
    )
    assert ("accuracy" in last) == (task.scores(output) is not None)
    assert all(0 <= row.get("accuracy", 0) <= 1 for row in trained.history)
    assert json.loads((tmp_path / "history.jsonl").read_text().splitlines()[-1]) == last


@pytest.mark.parametrize("name", ["regression", "custom"])
def test_a_run_of_another_task_is_continued_to_the_same_bits(name, tmp_path):
    samples, settings = TensorSamples(X, CASES[name][1]), Settings(epochs=3, batch_size=16, lr=0.01, device="cpu")
    given = {"task": MADE if name == "custom" else name, "key": "k"}
    method = sp.methods.gmp(density=0.5)
    whole = traced(name)
    train(method, whole, samples, samples, settings, folder=tmp_path / "a", **given)

    def stop(row):
        if row["step"] == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken = Settings(**{**vars(settings), "checkpoint_every": 5})
        train(method, traced(name), samples, samples, broken, folder=tmp_path / "b", on_step=stop, **given)
    program = traced(name)
    train(method, program, samples, samples, broken, folder=tmp_path / "b", resume=True, **given)
    assert all(torch.equal(a, b) for a, b in zip(program.parameters(), whole.parameters(), strict=True))


def attached(name, task=None, method=None):
    program = traced(name).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    return program, sp.attach(method or sp.methods.dense(), program, optimizer, total_steps=9, epoch_steps=9, task=task)


def test_a_program_traced_for_regression_needs_no_task_again():
    program, trainer = attached("regression")
    assert trainer.task == Regression()
    assert torch.equal(trainer.loss(program(X), Z[:, 0]), nn.functional.mse_loss(program(X)[:, 0], Z[:, 0]))
    program, trainer = attached("regression", Regression(criterion="mae"))
    assert torch.equal(trainer.loss(program(X), Z[:, 0]), nn.functional.l1_loss(program(X)[:, 0], Z[:, 0]))


def test_the_loss_of_a_scaled_regression_is_of_deviations():
    program, target = traced("regression").train(), 50 * Z[:, 0] + 1000
    mean, deviation = fit_scale(program, target)
    optimizer = torch.optim.AdamW(program.parameters(), lr=0.05)
    trainer = sp.attach(sp.methods.gmp(density=0.5), program, optimizer, total_steps=100)
    assert trainer.task.deviations == (pytest.approx(float(deviation)),) and program.task == Regression()
    learned = (program(X)[:, 0] - mean) / deviation
    wanted = nn.functional.mse_loss(learned, (target - mean) / deviation)
    assert trainer.loss(program(X), target).item() == pytest.approx(wanted.item(), rel=1e-4)
    for _ in range(100):
        trainer.loss(program(X), target).backward()
        trainer.step()
        optimizer.zero_grad()
    assert Regression().figures(program.eval()(X), target)["r2"] > 0.9
    _, given = attached("regression", Regression(deviations=(2.0,)))
    assert given.task.deviations == (2.0,)


@pytest.mark.parametrize("task", [Regression(), None])
def test_a_scale_that_is_set_after_attach_is_read_as_well(task):
    program, trainer = attached("regression", task)
    target = 50 * Z[:, 0] + 1000
    plain = trainer.loss(program(X), target).item()
    for factor in (1, 2):
        mean, deviation = fit_scale(program, factor * target)
        learned = (program(X)[:, 0] - mean) / deviation
        wanted = nn.functional.mse_loss(learned, (factor * target - mean) / deviation).item()
        found = trainer.loss(program(X), factor * target).item()
        assert found == pytest.approx(wanted, rel=1e-4) and found < 5 < plain
        assert trainer.task.deviations == (pytest.approx(float(deviation)),)
    again = copy.deepcopy(trainer)
    assert again.loss(again.program(X), 2 * target).item() == found


def test_floats_are_no_classes():
    torch.manual_seed(0)
    program = sp.trace(Net(()), (X[:4],)).train()
    trainer = sp.attach(sp.methods.dense(), program, torch.optim.SGD(program.parameters(), lr=0.1), total_steps=9)
    with pytest.raises(TrainingError, match=r"task 'classification' takes class numbers.*found output float32 \[96\]"):
        trainer.loss(program(X), Z[:, 0])


def test_what_a_program_does_not_return_is_refused():
    with pytest.raises(TrainingError, match="reads the output 'prediction', and program 'net' returns logits"):
        attached("classification", "regression")
    with pytest.raises(TaskError, match="there is no task 'regresion'"):
        attached("regression", "regresion")
    program, trainer = attached("custom")
    with pytest.raises(TaskError, match="which files do not store"):
        trainer.loss(program(X), Z[:, 0])


@pytest.mark.parametrize("wrap", ["moon", "widened"])
def test_methods_that_read_class_scores_refuse_other_tasks(wrap):
    method = getattr(sp.methods, wrap)(sp.methods.dense())
    with pytest.raises(
        TrainingError, match=rf"{wrap}\(dense\).* is made for the task classification.*'regression'.*Choose"
    ):
        attached("regression", method=method)
    program = traced("multilabel")
    with pytest.raises(TrainingError, match=f"{wrap}.*'multilabel'"):
        rehearse(method, program, 96, Settings(epochs=1, device="cpu"), task="multilabel")
    assert not program.masks() and program.output_names("train") == ("logits",)


def test_wrappers_keep_to_the_tasks_of_what_they_wrap():
    moon = sp.methods.moon(sp.methods.dense())
    assert sp.methods.agent(moon).tasks == sp.methods.distilled(moon).tasks == ("classification",)
    assert sp.methods.rigl(density=0.1).tasks == ()
    other = sp.methods.Method(name="mine", density=1.0, initial="dense", tasks=("regression",))
    with pytest.raises(RecipeError, match="made for the task regression, its wrapper for classification"):
        sp.methods.moon(other)


@pytest.mark.parametrize("name", ["multilabel", "dense", "sequence", "regression"])
def test_a_correction_probes_the_loss_of_the_task(name):
    method = sp.methods.agent(sp.methods.set(density=0.4), snapshot="running")
    program, trainer = attached(name, name, method)
    for _ in range(2):
        trainer.loss(program(X), CASES[name][1]).backward()
        trainer.step(lambda: trainer.loss(program(X), CASES[name][1]))
        trainer.optimizer.zero_grad()
    assert trainer.counts["probes"]


def test_a_loss_without_a_gradient_is_refused_where_one_is_wanted():
    program = sp.trace(Net((1,)), (X[:2],), task="regression").train()
    task = Regression(criterion=lambda output, target: (output.detach()[:, 0] - target).square().mean())
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    trainer = sp.attach(sp.methods.gmp(density=0.5), program, optimizer, total_steps=24, task=task)
    with pytest.raises(TrainingError, match=r"the loss of task 'regression\{.*' has no gradient.*without detach"):
        trainer.loss(program(X), Z[:, 0])
    with torch.no_grad():
        assert trainer.loss(program(X), Z[:, 0]).item() > 0
