"""The file of a program says what its outputs mean, as data that may come from anyone."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import LoadError
from sparsify.tasks import Binary, Custom, Regression
from tests.ir.test_serialization_unfinished import changed

X = torch.rand(4, 6)


def traced(task, outputs=1):
    return sp.trace(nn.Linear(6, outputs), (X,), task=task, check=False)


def test_the_task_is_kept_through_passes_and_files(tmp_path):
    program = sp.Pipeline.parse("insert-masks{density=0.5}")(traced(Regression(criterion="mae")))
    program.save(tmp_path / "p.sparsify")
    assert sp.Program.load(tmp_path / "p.sparsify").task == program.task == Regression(criterion="mae")
    assert traced("binary").clone().task == Binary()
    custom = traced(Custom(criterion=lambda output, target: output.sum()))
    custom.save(tmp_path / "c.sparsify")
    loaded = sp.Program.load(tmp_path / "c.sparsify").task
    assert loaded is not None and loaded.name == "custom" and loaded.output is None


def test_a_program_without_one_has_none_and_its_file_is_what_it_was(tmp_path):
    traced(None, 3).save(tmp_path / "p.sparsify")
    with zipfile.ZipFile(tmp_path / "p.sparsify") as archive:
        assert "task" not in json.loads(archive.read("program.json"))
    assert sp.Program.load(tmp_path / "p.sparsify").task is None


def test_a_trainer_takes_the_task_of_the_program(tmp_path):
    program = traced("binary").train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    trainer = sp.attach(sp.methods.static_random(density=0.5), program, optimizer, total_steps=4)
    assert trainer.task.name == "binary"
    assert sp.trace(nn.Linear(6, 1), (X,), task="binary").task == trainer.task


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "task"),
        ("regression", "task"),
        ({"kind": "regression", "options": {"criterion": ["x"]}}, "task"),
        ({"kind": "regression", "options": {"criterion": "log"}}, "should be one of mse"),
        ({"kind": "regression", "options": {"criterion": "mse", "hook": "os:system"}}, "option 'hook'"),
        ({"kind": "os:system"}, "no task 'os:system'"),
        ({"kind": "classification"}, "reads 'logits', which the graph train does not return"),
        ({"kind": "custom", "options": {"criterion": "os:system"}}, "option 'criterion'"),
    ],
)
def test_another_value_in_a_file_is_refused(value, words, tmp_path):
    traced("regression").save(tmp_path / "p.sparsify")
    changed(tmp_path / "p.sparsify", task=value)
    with pytest.raises(LoadError, match=words):
        sp.Program.load(tmp_path / "p.sparsify")
