"""Data are read once for no task and for the one that fits; what reading warns of is said once, when the task is known."""

from __future__ import annotations

import warnings

import pytest

from sparsify.errors import LoadWarning
from sparsify.loading import load_data
from sparsify.loading.once import once, read_once

FACTORY = """
import warnings
import torch
from sparsify.errors import LoadWarning

def load():
    with open(__file__ + ".log", "a") as log:
        log.write("read ")
    warnings.warn("few samples", LoadWarning)
    x = torch.rand(60, 3)
    return (x[:40], (x[:40, 0] > 0.5).long()), (x[40:], (x[40:, 0] > 0.5).long())
"""


def test_a_factory_is_called_once_and_its_warning_told_once(tmp_path):
    (tmp_path / "d.py").write_text(FACTORY)
    text = f"{tmp_path / 'd.py'}:load"
    with read_once():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            first = load_data(text, seed=0)
        with read_once(), pytest.warns(LoadWarning, match="few samples"):
            second = load_data(text, seed=0, task="classification")
        assert first.fingerprint() == second.fingerprint()
        with pytest.warns(LoadWarning, match="few samples"):
            load_data(text, seed=0, task="classification")
    assert (tmp_path / "d.py.log").read_text().split() == ["read", "read"]


def test_outside_of_the_block_everything_is_read():
    read = iter(range(9))
    assert [once("a", task, lambda: next(read)) for task in (None, "binary", None)] == [0, 1, 2]
    with read_once():
        assert [once("a", task, lambda: next(read)) for task in (None, None, "binary", "binary")] == [3, 4, 4, 5]
