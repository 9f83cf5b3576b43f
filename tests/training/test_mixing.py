"""Mixed batches in a loop: the loss of both targets, the term of a ranking, what is counted, and what is refused with what to do."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import TrainingError
from sparsify.loading import load_data
from sparsify.parts.corrections import Correction
from sparsify.parts.mixing import MixedTarget
from sparsify.parts.samples import Batch, Subset
from sparsify.passes import RecordRandomness
from sparsify.tasks import build
from sparsify.training import Settings, train
from sparsify.training.trainer import loss_of
from tests.cases import cnn, digits
from tests.training.test_meaning import CASES, MADE, traced
from tests.training.test_meaning import X as INPUTS

X, Y = digits(32)
CE = nn.functional.cross_entropy
MIXED = sp.methods.mixup(sp.methods.dense())
FORMS = {"ndcg": 3, "margin": 1}


@functools.cache
def network(dropout=0.0):
    """Traced once; every run takes a copy."""
    torch.manual_seed(1)
    layers = [nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 10)]
    return sp.trace(nn.Sequential(nn.Flatten(), *layers), (X,))


def attached(method, *, dropout=0.0, steps=8, **given):
    program = network(dropout).clone().train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    return program, sp.attach(method, program, optimizer, total_steps=steps, seed=5, **given)


def test_other_methods_leave_a_batch_as_it_is():
    _, trainer = attached(sp.methods.rigl(density=0.2, update_every=2))
    x, y = trainer.prepare(X, Y)
    assert x is X and y is Y


def test_the_loss_is_that_of_both_labels_on_mixed_inputs():
    program, trainer = attached(MIXED)
    x, target = trainer.prepare(X, Y)
    (pairing,) = target.pairings
    assert 0 < pairing.share < 1
    assert torch.equal(x, pairing.share * X + (1 - pairing.share) * X[pairing.order])
    logits = program(x)
    wanted = pairing.share * CE(logits, Y) + (1 - pairing.share) * CE(logits, Y[pairing.order])
    loss = trainer.loss(logits, target)
    assert torch.equal(loss, wanted)
    smoothed = trainer.loss(logits, target, label_smoothing=0.1)
    assert float(smoothed.detach()) == pytest.approx(
        pairing.share * float(CE(logits, Y, label_smoothing=0.1).detach())
        + (1 - pairing.share) * float(CE(logits, Y[pairing.order], label_smoothing=0.1).detach()),
        rel=1e-6,
    )
    loss.backward()
    trainer.step()
    assert (trainer.counts["forwards"], trainer.counts["backwards"]) == (1, 1)


def test_a_loss_of_the_method_s_own_is_that_of_both_labels_too():
    program, trainer = attached(sp.methods.build("mixup(focal(dense))", {}))
    x, target = trainer.prepare(X, Y)
    (pairing,), logits = target.pairings, program(x)
    focal = [sp.methods.focal(sp.methods.dense()).objective(1).loss(logits, y, {}) for y in (Y, Y[pairing.order])]
    assert torch.allclose(trainer.loss(logits, target), pairing.share * focal[0] + (1 - pairing.share) * focal[1])


@pytest.mark.parametrize("form", FORMS)
def test_a_ranking_is_added_to_the_loss_of_the_batch_and_its_passes_counted(form):
    method = sp.methods.rankmixup(sp.methods.dense(), form=form, weight=0.5)
    program, trainer = attached(method)
    x, target = trainer.prepare(X, Y)
    assert x is X and len(target.pairings) == FORMS[form] and target.own is Y
    copy = program.clone().train()
    logits = program(X)
    loss = trainer.loss(logits, target, inputs=X)
    own = copy(X)
    mixed = [copy(pairing.combined(X)) for pairing in target.pairings]
    term = method.mixing.ranking.loss(own, mixed, Y, target.pairings)
    assert torch.allclose(loss, CE(own, Y) + 0.5 * term) and float(term.detach()) > 0
    assert all(torch.equal(value, dict(copy.named_buffers())[name]) for name, value in program.named_buffers())
    loss.backward()
    trainer.step()
    assert trainer.counts["forwards"] == trainer.counts["backwards"] == 1 + FORMS[form]


def test_the_micro_batches_of_a_step_are_counted_as_one_batch():
    program, trainer = attached(sp.methods.rankmixup(sp.methods.dense()))
    for step in (1, 2):
        for rows in torch.arange(len(X)).chunk(4):
            x, y = trainer.prepare(X[rows], Y[rows])
            (trainer.loss(program(x), y, inputs=x) / 4).backward()
        trainer.step()
        trainer.optimizer.zero_grad()
        assert (trainer.counts["forwards"], trainer.counts["backwards"]) == (4 * step, 4 * step)


@pytest.mark.parametrize("name", ["mixup", "rankmixup"])
def test_a_batch_that_was_not_prepared_is_refused_with_what_to_write(name):
    program, trainer = attached(sp.methods.build(f"{name}(dense)", {}))
    said = r"call x, y = trainer.prepare\(x, y\) once per batch.*trainer.loss\(program\(x\), y, inputs=x\)"
    with pytest.raises(TrainingError, match=said):
        trainer.loss(program(X), Y, inputs=X)
    program, trainer = attached(sp.methods.build(f"{name}(dense)", {}))
    CE(program(X), Y).backward()
    with pytest.raises(TrainingError, match=r"Train with trainer.loss\(program\(x\), y, inputs=x\).backward\(\)"):
        trainer.step()
    if name == "rankmixup":
        with pytest.raises(TrainingError, match=said):
            trainer.loss(program(X), trainer.prepare(X, Y).target)


def test_tokens_are_refused():
    torch.manual_seed(0)
    tokens = torch.randint(9, (4, 5))
    model = nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(30, 3))
    program = sp.trace(model, (tokens,)).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    trainer = sp.attach(MIXED, program, optimizer, total_steps=4)
    with pytest.raises(
        TrainingError, match=r"needs floating-point inputs; found torch.int64.*another method for tokens"
    ):
        trainer.prepare(tokens, torch.zeros(4).long())


@pytest.mark.parametrize("name", CASES)
def test_every_task_learns_from_mixed_samples(name):
    program, target = traced(name, seed=2).train(), CASES[name][1]
    optimizer = torch.optim.AdamW(program.parameters(), lr=0.03, weight_decay=0.0)
    method = sp.methods.mixup(sp.methods.dense(), concentration=0.2)
    trainer = sp.attach(method, program, optimizer, total_steps=60, task=MADE if name == "custom" else None)
    task, losses = MADE if name == "custom" else build(name), []
    for _ in range(60):
        x, y = trainer.prepare(INPUTS, target)
        trainer.loss(program(x), y).backward()
        trainer.step()
        optimizer.zero_grad()
        output = program.reading(task.trained_on, "train", torch.utils._pytree.tree_leaves(program(INPUTS)))
        losses.append(float(task.loss(output, target).detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_a_ranking_reads_class_scores():
    method = sp.methods.rankmixup(sp.methods.dense())
    program = traced("regression").train()
    with pytest.raises(TrainingError, match=r"'rankmixup\(dense\)' is made for the task classification"):
        sp.attach(method, program, torch.optim.SGD(program.parameters(), lr=0.1), total_steps=4)


@pytest.mark.parametrize("name", ["mixup", "rankmixup"])
def test_a_probe_evaluates_the_batch_of_the_step_with_the_same_pairs_and_dropout(name):
    seen = []

    def correct(view, state):
        evaluation = view.batch.evaluate()
        seen.append(all(torch.equal(value, view.gradients[key]) for key, value in evaluation.gradients.items()))
        seen.append(torch.equal(evaluation.loss, view.batch.loss()))
        return {}, state

    correction = Correction(init=lambda weights: None, correct=correct)
    slots = {"correction": lambda total: correction, "passes": (RecordRandomness(),)}
    base = sp.Method(name="probed", density=1.0, initial="dense", **slots)
    program, trainer = attached(getattr(sp.methods, name)(base), dropout=0.5)
    for _ in range(3):
        x, y = trainer.prepare(X, Y)

        def again(x=x, y=y):
            return trainer.loss(program(x), y, inputs=x)

        again().backward()
        trainer.step(again)
        trainer.optimizer.zero_grad()
    assert seen == [True] * 6
    passes = 1 if name == "mixup" else 4
    assert trainer.counts == {**trainer.counts, "probes": 6, "forwards": 9 * passes, "backwards": 6 * passes}


def test_attacks_raise_the_loss_of_mixed_samples():
    method = sp.methods.adversarial(MIXED, radius=0.1, step_size=0.05, iterations=3)
    program, trainer = attached(method)
    torch.manual_seed(0)
    found = loss_of(trainer, Batch(X, Y), Settings(epochs=1))
    target = found.target
    assert isinstance(target, MixedTarget)
    mixed = target.pairings[0].combined(X)
    assert float(found().detach()) > float(trainer.loss(program(mixed), target).detach())


@pytest.mark.parametrize("name", ["mixup(set)", "rankmixup(gmp)", "ps-kd(rigl)"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_of_the_command_resumes_to_the_same_bits(name, precision, tmp_path):
    data = load_data("digits", seed=0)
    small = Subset(data.train, torch.arange(10 * 32))
    method = sp.methods.build(name, {"density": 0.2, "update_every": 6})
    settings = Settings(epochs=4, batch_size=32, lr=0.05, checkpoint_every=7, precision=precision)
    arguments = (small, data.validation, settings)

    def stop(row):
        if row["step"] == 33:
            raise KeyboardInterrupt

    whole, parts = cnn(), cnn()
    result = train(method, whole, *arguments, folder=tmp_path / "whole", key="k")
    with pytest.raises(KeyboardInterrupt):
        train(method, parts, *arguments, folder=tmp_path / "parts", key="k", on_step=stop)
    parts = cnn()
    resumed = train(method, parts, *arguments, folder=tmp_path / "parts", key="k", resume=True)
    assert all(torch.equal(value, parts.state_dict()[key]) for key, value in whole.state_dict().items())
    assert resumed.counts == result.counts
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in result.history]
    assert all(0 <= row["accuracy"] <= 1 for row in result.history) and result.history[-1]["val_accuracy"] > 0.3
