"""Checkpoints: written and read, refused where they are not, and put on a device."""

from __future__ import annotations

import pytest
import torch

from sparsify.errors import CheckpointError
from sparsify.training.checkpoint import load_checkpoint, placed, save_checkpoint


def test_what_was_saved_is_loaded(tmp_path):
    save_checkpoint(tmp_path / "c.pt", {"steps": 3, "scores": {"0.grow": {"w": (torch.ones(2), None)}}})
    found = load_checkpoint(tmp_path / "c.pt")
    assert found["steps"] == 3 and torch.equal(found["scores"]["0.grow"]["w"][0], torch.ones(2))


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="Start the run without --resume"):
        load_checkpoint(tmp_path / "c.pt")
    (tmp_path / "c.pt").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(tmp_path / "c.pt")
    torch.save({"format": 0}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of this version"):
        load_checkpoint(tmp_path / "c.pt")


def test_tensors_go_to_the_device_wherever_they_are():
    found = placed({"a": (None, torch.ones(2), [torch.zeros(1), 3]), "b": "text"}, torch.device("meta"))
    none, first, (second, three) = found["a"]
    assert none is None and first.is_meta and second.is_meta and three == 3 and found["b"] == "text"
