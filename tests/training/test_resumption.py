"""A checkpoint is checked as a whole before a run goes on from it: whatever is wrong in it ends in one message that names it."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import CheckpointError
from sparsify.parts.samples import TensorSamples
from sparsify.training import Settings, load_checkpoint, train
from sparsify.training.checkpoint import FORMAT, form, save_checkpoint
from tests.cases import digits

SETTINGS = Settings(epochs=2, batch_size=64, checkpoint_every=2, early_stop=2)
METHODS = {
    "rigl": lambda: sp.methods.agent(sp.methods.rigl(density=0.3, update_every=2)),
    "dense": sp.methods.dense,
}


@functools.cache
def traced():
    """Traced once; every run takes a copy."""
    torch.manual_seed(0)
    return sp.trace(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)),
        (torch.rand(2, 1, 8, 8),),
        check=False,
    )


def run(folder, *, method="rigl", resume=False, optimizer="adamw", stop=None):
    torch.manual_seed(0)
    program = traced().clone()
    x, y = digits(192)
    samples = TensorSamples(x, y)
    settings = Settings(**{**vars(SETTINGS), "optimizer": optimizer})

    def on_step(row):
        if row["step"] == stop:
            raise KeyboardInterrupt

    return train(
        METHODS[method](), program, samples, samples, settings, folder=folder, key="k", resume=resume, on_step=on_step
    )


@pytest.fixture(scope="module", params=[("rigl", "adamw"), ("dense", "sgd")], ids=["rigl", "dense"])
def stopped(request, tmp_path_factory):
    """(content of a checkpoint in mid-run, method, optimizer)."""
    method, optimizer = request.param
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(KeyboardInterrupt):
        run(folder, method=method, optimizer=optimizer, stop=5)
    return load_checkpoint(folder / "checkpoint.pt"), method, optimizer


def paths(value, path=()):
    """Every place in nested content."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, inner in items:
        yield from paths(inner, (*path, key))


def replaced(content, path, value):
    """Content with another value at a place; a tuple on the way becomes a new one."""
    if not path:
        return value
    key, *rest = path
    inner = replaced(content[key], rest, value)
    if isinstance(content, tuple):
        return (*content[:key], inner, *content[key + 1 :])
    found = copy.copy(content)
    found[key] = inner
    return found


WRONG = ("text", -1, 10**30, math.nan, [[1]], {0: 0}, torch.zeros(3, 3, 3), torch.tensor(math.nan), b"bytes")


def test_a_checkpoint_changed_anywhere_is_refused(stopped, tmp_path):
    content, _, _ = stopped
    saved = {"format": FORMAT, "form": form(content), **content}
    places, generator = [path for path in paths(saved) if path], torch.Generator().manual_seed(0)
    assert len(places) > 60
    for path in places:
        wrong = WRONG[int(torch.randint(len(WRONG), (1,), generator=generator))]
        torch.save(replaced(saved, path, wrong), tmp_path / "checkpoint.pt")
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path / "checkpoint.pt")
    for name in saved:
        torch.save({key: value for key, value in saved.items() if key != name}, tmp_path / "checkpoint.pt")
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path / "checkpoint.pt")


def test_a_checkpoint_that_lacks_a_part_of_a_run_is_refused(stopped, tmp_path):
    content, method, optimizer = stopped
    for name in ("program", "grown"):
        save_checkpoint(tmp_path / "checkpoint.pt", {k: v for k, v in content.items() if k != name})
        with pytest.raises(CheckpointError, match=f"cannot resume from.*{name} should be a dict, found NoneType"):
            run(tmp_path, method=method, optimizer=optimizer, resume=True)


@pytest.mark.parametrize(("path", "value", "message"), [
    (("program", "1.weight"), torch.zeros(8, 63), r"program.1.weight should be torch.float32 \[8, 64\]"),
    (("program", "1.bias"), torch.full((8,), math.inf), "program.1.bias holds NaN or infinity"),
    (("trainer", "steps"), 10**9, "trainer.steps is 1000000000, and the run has 6 steps"),
    (("trainer", "counts"), {}, "trainer.counts should hold"),
    (("optimizer", "param_groups"), [], "optimizer.param_groups should be"),
    (("history", 0), {"step": "x"}, "history.0 is not a row"),
    (("sums",), [1.0, math.nan], "sums is"),
    (("rng",), torch.zeros(3), "rng should be"),
])  # fmt: skip
def test_what_is_wrong_is_named(stopped, tmp_path, path, value, message):
    content, method, optimizer = stopped
    save_checkpoint(tmp_path / "checkpoint.pt", replaced(content, path, value))
    with pytest.raises(CheckpointError, match=rf"cannot resume from .*{message}"):
        run(tmp_path, method=method, optimizer=optimizer, resume=True)


def test_what_is_not_changed_goes_on_to_the_same_bits(stopped, tmp_path):
    content, method, optimizer = stopped
    save_checkpoint(tmp_path / "checkpoint.pt", content)
    resumed = run(tmp_path, method=method, optimizer=optimizer, resume=True)
    assert resumed == run(tmp_path / "whole", method=method, optimizer=optimizer)
