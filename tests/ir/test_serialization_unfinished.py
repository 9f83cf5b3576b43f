"""What a trainer had still to do is kept in the file of a program, as data that may come from anyone."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import LoadError, TrainingWarning

X = torch.rand(8, 16)


@pytest.fixture
def program():
    program = sp.trace(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)), (X,), check=False).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    sp.attach(sp.methods.gmp(density=0.3, update_every=5), program, optimizer, total_steps=40)
    return program.eval()


def changed(path, **fields):
    with zipfile.ZipFile(path) as archive:
        parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    parts["program.json"] = json.dumps({**json.loads(parts["program.json"]), **fields}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def test_a_saved_program_says_what_was_left_when_it_is_exported(program, tmp_path):
    program.save(tmp_path / "p.sparsify")
    loaded = sp.Program.load(tmp_path / "p.sparsify")
    assert loaded.unfinished == program.unfinished and "reaches density 0.3 on step 30 of 40" in loaded.unfinished
    with pytest.warns(TrainingWarning, match="before its training is over.* on step 30 of 40"):
        sp.export(loaded, tmp_path / "p.onnx", inputs=[X])


def test_a_finished_program_and_an_older_file_say_nothing(program, tmp_path):
    program.unfinished = ""
    program.save(tmp_path / "p.sparsify")
    with zipfile.ZipFile(tmp_path / "p.sparsify") as archive:
        assert "unfinished" not in json.loads(archive.read("program.json"))
    assert not sp.Program.load(tmp_path / "p.sparsify").unfinished


@pytest.mark.parametrize("value", [3, None, ["x"], "x" * 501])
def test_another_value_in_a_file_is_refused(program, tmp_path, value):
    program.save(tmp_path / "p.sparsify")
    changed(tmp_path / "p.sparsify", unfinished=value)
    with pytest.raises(LoadError, match="unfinished"):
        sp.Program.load(tmp_path / "p.sparsify")
