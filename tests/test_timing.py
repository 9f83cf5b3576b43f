"""Batches and timings of files."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify import timing
from sparsify.errors import ExportError
from tests.cases import digits
from tests.exporters.grouped_mlp import images, in_batches, load, run


def test_values_over_all_samples_are_those_of_one_call():
    model, (x, _) = load(1), images(70)
    found = timing.values_of(model, in_batches(x))
    assert [len(value) for value in found["logits"]] == [32, 32, 6] and set(found) == {"logits", "probabilities"}
    assert np.allclose(np.concatenate(found["logits"]), run(model, x, "logits")[0], atol=1e-5)


def test_a_file_that_fails_on_its_inputs_is_an_error():
    with pytest.raises(ExportError, match="ONNX Runtime fails on the file"):
        timing.values_of(load(1), [{"x": np.zeros((2, 1, 8, 9), np.float32)}])


def test_the_time_of_a_file_is_the_median_of_its_rounds(monkeypatch):
    seconds = itertools.cycle([0.001, 0.002])  # two files taking turns
    monkeypatch.setattr(timing, "seconds_per_call", lambda call, repeats: next(seconds))
    model, x = load(1), {"x": images(4)[0]}
    assert timing.times({"a": (model, x), "b": (model, x)}, threads=1) == pytest.approx({"a": 1.0, "b": 2.0})


def test_nothing_to_time():
    assert timing.times({}, threads=1) == {}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_file_that_the_runtime_has_no_operators_for_is_refused_for_that(tmp_path, dtype):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10)).to(dtype)
    x = digits(8)[0].to(dtype)
    with pytest.raises(ExportError, match=r"ONNX Runtime cannot run the file: .*\.float\(\) before it is traced"):
        sp.export(sp.trace(model, (x,)).eval(), tmp_path / "m.onnx", inputs=[x])
    assert not list(tmp_path.iterdir())
