"""Times of steps: they are there, they change nothing of the run, and where they are not, the reason is given."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import TrainingError
from sparsify.loading import load_data
from sparsify.methods import build
from sparsify.parts.samples import Subset
from sparsify.training import Settings, step_times, train
from sparsify.training.step_times import LEAST_PAIRS, MOST_PAIRS

SETTINGS = Settings(epochs=2, batch_size=16, lr=0.05, device="cpu", compact="always")


@pytest.fixture(scope="module")
def data():
    found = load_data("digits", seed=0)
    return dataclasses.replace(found, train=Subset(found.train, torch.arange(20 * 16)))


def trained(data, folder, method="rigl", **changes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10))
    program = sp.trace(model, (torch.rand(2, 1, 8, 8),))
    options = {} if method == "dense" else {"density": 0.25, "pattern": "grouped:16", "keep_dense": ("4.*",)}
    rounds = {"update_every": 5} if "rigl" in method or method == "gmp" else {}
    given = {"timed": True, "epochs": 2, **changes}
    settings = dataclasses.replace(SETTINGS, epochs=given.pop("epochs"))
    found = train(
        build(method, {**options, **rounds}),
        program,
        data.train,
        data.validation,
        settings,
        folder=folder,
        key="k",
        **given,
    )
    return program, found


@pytest.mark.parametrize("method", ["rigl", "gmp", "agent(rigl)", "averaged(rigl)"])
def test_a_step_with_the_final_masks_is_timed_beside_a_dense_one(data, tmp_path, method):
    _, found = trained(data, tmp_path, method)
    times = found.times
    assert times is not None and times.compared is not None, times
    compared = times.compared
    assert times.milliseconds > 0 and (times.steps, times.batch_size, times.reason) == (40, 16, "")
    assert compared.milliseconds > 0 and compared.dense_milliseconds > 0
    assert 0 < compared.interval[0] <= compared.ratio <= compared.interval[1]
    assert LEAST_PAIRS <= compared.pairs <= MOST_PAIRS
    assert times.to_dict()["compared"]["pairs"] == compared.pairs


def test_timing_changes_nothing_of_the_run(data, tmp_path):
    plain, first = trained(data, tmp_path / "a", timed=False)
    random = torch.random.get_rng_state()
    timed, second = trained(data, tmp_path / "b")
    assert first.times is None and second.times is not None
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(torch.equal(value, timed.state_dict()[name]) for name, value in plain.state_dict().items())
    assert dataclasses.replace(second, times=None) == first
    assert (tmp_path / "a" / "history.jsonl").read_bytes() == (tmp_path / "b" / "history.jsonl").read_bytes()


def test_a_run_with_compact_weights_resumes_and_has_no_times_when_it_is_over(data, tmp_path):
    _, first = trained(data, tmp_path)
    _, again = trained(data, tmp_path, resume=True)
    assert again.times is None and again.savings == first.savings


@pytest.mark.parametrize(
    ("method", "epochs", "reason"),
    [("rigl", 1, "this process made 20 steps, fewer than 30"), ("dense", 2, "no weight has a mask")],
)
def test_where_nothing_is_compared_the_reason_is_given(data, tmp_path, method, epochs, reason):
    _, found = trained(data, tmp_path, method, epochs=epochs)
    assert found.times is not None and found.times.milliseconds > 0
    assert (found.times.compared, found.times.reason) == (None, reason)


def test_slow_steps_are_not_compared(data, tmp_path, monkeypatch):
    for bound in ("SHARE", "SHORTEST", "MOST_FOR_LEAST"):
        monkeypatch.setattr(step_times, bound, 0.0)
    _, found = trained(data, tmp_path)
    assert (
        found.times is not None
        and found.times.compared is None
        and "10 pairs of steps take longer" in found.times.reason
    )


def test_a_copy_that_cannot_be_trained_fails_no_run(data, tmp_path, monkeypatch):
    def fails(*given, **options):
        raise TrainingError("out of luck")

    monkeypatch.setattr(step_times, "attach", fails)
    _, found = trained(data, tmp_path)
    assert found.times is not None and found.times.reason == "a copy could not be trained (out of luck)"
