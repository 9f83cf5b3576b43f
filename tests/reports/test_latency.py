"""Latency: the interval by hand, the verdict, and real files in ONNX Runtime (no test judges a time)."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsify.errors import ExportError
from sparsify.reports.latency import Latency, Timing, compare, median_interval, nonzeros


def model(path, *, features=4, zeros=0, operator="MatMul", domain="", dims=("N", 4)):
    weight = np.ones((features, 3), np.float32)
    weight.reshape(-1)[:zeros] = 0
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"], domain=domain)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(dims))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [dims[0], 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", 20)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_the_interval_of_a_median_by_hand():
    # n = 25: ranks 12.5 -+ 1.96 * 5 / 2 = 7.6 and 17.4, outward 7 and 18.
    assert median_interval([float(x) for x in range(25)]) == (7.0, 18.0)


def test_the_interval_covers_the_true_median_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    covered = [low <= 0 <= high for low, high in (median_interval(list(rng.standard_normal(41))) for _ in range(2000))]
    assert 0.94 < np.mean(covered) < 0.985


@pytest.mark.parametrize(
    ("interval", "noise", "verdict"),
    [
        ((1.8, 2.2), (0.9, 1.1), "faster"),
        ((1.05, 1.2), (0.9, 1.1), "no difference beyond noise"),
        ((0.5, 0.6), (0.9, 1.1), "slower"),
        ((0.8, 1.3), (0.99, 1.01), "no difference beyond noise"),
    ],
)
def test_a_difference_must_leave_the_noise_behind(interval, noise, verdict):
    timing = Timing("a", 1.0, (1.0, 1.0), 1.0, interval, 1, 1)
    assert Latency((timing,), noise, 1, 1, 10, {}).verdict(timing) == verdict


def test_files_are_compared_and_counted(tmp_path):
    files = {"full": model(tmp_path / "a.onnx"), "half": model(tmp_path / "b.onnx", zeros=6)}
    result = compare(files, rounds=10, batch=2)
    full, half = result.timings
    assert (full.nonzeros, half.nonzeros) == (12, 6) and full.bytes == (tmp_path / "a.onnx").stat().st_size
    assert (full.speedup, full.interval) == (1.0, (1.0, 1.0))
    assert full.quartiles[0] <= full.milliseconds <= full.quartiles[1]
    assert half.interval[0] <= half.speedup <= half.interval[1] and math.isfinite(half.speedup)
    assert result.noise[0] <= result.noise[1] and result.machine["cores"] >= 1
    assert json.loads(json.dumps(result.to_dict()))["batch"] == 2


def test_sparse_initializers_are_counted(tmp_path):
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    places = helper.make_tensor("w_index", TensorProto.INT64, [2], [0, 5])
    graph = helper.make_graph([], "g", [], [], sparse_initializer=[helper.make_sparse_tensor(values, places, [4, 3])])
    onnx.save(helper.make_model(graph), tmp_path / "s.onnx")
    assert nonzeros(tmp_path / "s.onnx") == 2


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (lambda p: {"a": p / "none.onnx"}, {}, "there is no file"),
        (lambda p: {"a": p / "text.onnx"}, {}, "cannot load"),
        (lambda p: {"a": model(p / "a.onnx", operator="Own", domain="mine")}, {}, "standard operators"),
        (
            lambda p: {"a": model(p / "a.onnx"), "b": model(p / "b.onnx", features=5, dims=("N", 5))},
            {},
            "does not run on x",
        ),
        (lambda p: {"a": model(p / "a.onnx", dims=("N", "F"))}, {}, "--shape x="),
        (lambda p: {"a": model(p / "a.onnx")}, {"shapes": {"z": (1, 4)}}, "has no input 'z'"),
        (lambda p: {"a": model(p / "a.onnx")}, {"rounds": 3}, "rounds should be at least 10"),
        (lambda p: {"a": model(p / "a.onnx")}, {"threads": 0}, "threads should be at least 1"),
    ],
)
def test_what_cannot_be_timed_is_said(tmp_path, build, options, message):
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ExportError, match=message):
        compare(build(tmp_path), **{"rounds": 10, **options})
