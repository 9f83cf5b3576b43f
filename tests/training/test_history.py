"""Rows of the history: means over the validation part by hand, what was counted, and what a method says of itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.parts.samples import TensorSamples
from sparsify.training.history import BATCH, epoch_row
from tests.cases import cnn, digits

X, Y = digits(300)
MEANS = {"loss": 0.5, "accuracy": 0.75}


def after(method, steps):
    program = cnn().train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.05)
    trainer = sp.attach(method, program, optimizer, total_steps=100, epoch_steps=100)
    for _ in range(steps):
        trainer.loss(program(X[:32]), Y[:32]).backward()
        trainer.step(lambda: trainer.loss(program(X[:32]), Y[:32]))
        optimizer.zero_grad()
    return trainer


def test_a_dense_row_by_hand():
    trainer = after(sp.methods.dense(), 2)
    row = epoch_row(trainer, MEANS, TensorSamples(X, Y), {})
    measured = ["val_loss", "val_accuracy", "val_nll", "val_ece"]
    assert list(row) == ["step", "loss", "accuracy", *measured, "density", "lr", "evaluations"]
    assert trainer.program.training and (row["step"], row["evaluations"], row["lr"]) == (2, 2.0, 0.05)
    assert {key: row[key] for key in MEANS} == MEANS and len(X) > BATCH
    with torch.no_grad():
        logits = trainer.program.eval()(X)
    assert row["val_loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, Y)), rel=1e-5)
    assert row["val_accuracy"] == float((logits.argmax(1) == Y).double().mean())


def test_what_is_not_a_number_is_not_right():
    trainer = after(sp.methods.dense(), 1)
    with torch.no_grad():
        next(p for p in reversed(list(trainer.program.parameters())) if p.shape == (10,))[0] = torch.nan  # class 0
    assert bool((Y == 0).any()) and epoch_row(trainer, MEANS, TensorSamples(X, Y), {})["val_accuracy"] == 0.0


def test_the_loss_of_the_validation_part_is_that_of_the_task_whatever_was_minimised():
    method = sp.methods.label_smoothing(sp.methods.dense(), smoothing=0.2, smoothing_end=0.0)
    trainer = after(method, 2)
    row = epoch_row(trainer, MEANS, TensorSamples(X, Y), {})
    with torch.no_grad():
        logits = trainer.program.eval()(X)
    assert row["val_loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, Y)), rel=1e-5)
    assert row["readings"] == {"smoothing": pytest.approx(0.2 * 98 / 99)}


def test_turnover_is_of_the_rounds_since_the_row_before():
    trainer = after(sp.methods.set(density=0.2, update_every=2), 5)
    grown = {name: count - 3 for name, count in trainer.grown.items()}
    row = epoch_row(trainer, MEANS, TensorSamples(X, Y), grown)
    assert row["coverage"] == trainer.coverage and all(value > 0.2 for value in row["coverage"].values())
    active = {name: int(mask.sum()) for name, mask in trainer.program.masks().items()}
    assert row["turnover"] == {name: 3 / active[name] for name in active}


def test_probes_are_counted_as_the_passes_they_take_and_readings_are_told():
    method = sp.methods.agent(sp.methods.moon(sp.methods.set(density=0.2), average=False), snapshot="running")
    trainer = after(method, 3)
    row = epoch_row(trainer, MEANS, TensorSamples(X, Y), {})
    # Beside each step's own: the batch at the snapshot, and its loss alone at the weights.
    assert trainer.counts["forwards"] == 9 and trainer.counts["backwards"] == 6 and row["evaluations"] == 7.5
    assert set(row["readings"]) == {"coefficient", "alpha", "unknown_mass"}
    with torch.no_grad():
        outputs = trainer.program.eval().outputs(X)
    assert row["val_unknown"] == pytest.approx(float(outputs["unknown"].double().mean()), rel=1e-5)
    assert row["val_ood_score"] == pytest.approx(float(outputs["ood_score"].double().mean()), rel=1e-5)
