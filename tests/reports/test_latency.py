"""Latency: the interval by hand, the verdict, and real files in ONNX Runtime (no test judges a time)."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsify import timing
from sparsify.errors import ExportError
from sparsify.figures.intervals import median_interval
from sparsify.reports.latency import Latency, Timing, compare, nonzeros


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
        ((1.05, 1.2), (0.95, 1.08), "too noisy to tell"),  # it claims a difference that the first file shows to itself
        ((0.97, 1.04), (0.7, 1.2), "too noisy to tell"),  # it claims none, on a machine that could not show one
        ((0.5, 0.6), (0.9, 1.1), "slower"),
        (
            (0.92, 0.95),
            (1.02, 1.06),
            "too noisy to tell",
        ),  # noise that happens to point the other way: 1 / 1.06 = 0.943
        ((0.98, 1.03), (0.99, 1.01), "no difference beyond noise"),
    ],
)
def test_a_difference_must_leave_the_noise_behind(interval, noise, verdict):
    timing = Timing("a", 1.0, (1.0, 1.0), 1.0, interval, 1, 1, 1)
    assert Latency((timing,), noise, 1, 1, 10, {}, {}).verdict(timing) == verdict


def test_the_table_compares_with_the_first_file():
    first = Timing("dense.onnx", 2.0, (1.9, 2.2), 1.0, (1.0, 1.0), 1000, 90, 100)
    other = Timing("model.onnx", 0.5, (0.4, 0.6), 4.0, (3.9, 4.2), 500, 9, 100)
    table = Latency((first, other), (0.98, 1.03), 1, 2, 50, {"x": (2, 4)}, {}).table()
    assert table.rows == (
        ("dense.onnx", ("2.00 (1.90 to 2.20)", "1.00", "reference", "1,000", "90 of 100")),
        ("model.onnx", ("0.500 (0.400 to 0.600)", "4.00 (3.90 to 4.20)", "faster", "500", "9 of 100")),
    )
    assert len(table.columns) == len(table.rows[0][1])


def test_files_are_compared_and_counted(tmp_path):
    files = {"full": model(tmp_path / "a.onnx"), "half": model(tmp_path / "b.onnx", zeros=6)}
    result = compare(files, rounds=10, batch=2)
    full, half = result.timings
    assert (full.nonzeros, half.nonzeros, half.values) == (12, 6, 12)
    assert full.bytes == (tmp_path / "a.onnx").stat().st_size and result.inputs == {"x": (2, 4)} and result.batch == 2
    assert (full.speedup, full.interval) == (1.0, (1.0, 1.0))
    assert full.quartiles[0] <= full.milliseconds <= full.quartiles[1]
    assert half.interval[0] <= half.speedup <= half.interval[1] and math.isfinite(half.speedup)
    assert result.noise[0] <= result.noise[1] and result.machine["cores"] >= 1
    assert json.loads(json.dumps(result.to_dict()))["batch"] == 2


def test_the_call_behind_another_file_is_not_timed(monkeypatch):
    """It reads weights that the other file drove out of the caches: here it takes 100, and every other call 2."""
    times, now = [100.0, 2.0, 2.0, 2.0], [0.0]

    def call():
        now[0] += times.pop(0)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    assert timing.seconds_per_call(call, 3) == 2.0 and not times


def test_sparse_initializers_are_counted(tmp_path):
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    places = helper.make_tensor("w_index", TensorProto.INT64, [2], [0, 5])
    graph = helper.make_graph([], "g", [], [], sparse_initializer=[helper.make_sparse_tensor(values, places, [4, 3])])
    onnx.save(helper.make_model(graph), tmp_path / "s.onnx")
    assert nonzeros(tmp_path / "s.onnx") == (2, 12)


def test_bytes_are_counted_and_indices_are_not(tmp_path):
    weights = numpy_helper.from_array(np.array([[3, 0], [-1, 0]], np.int8), "w")
    indices = numpy_helper.from_array(np.array([1, 2, 3], np.int64), "i")
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [], [weights, indices])), tmp_path / "q.onnx")
    assert nonzeros(tmp_path / "q.onnx") == (2, 4)


def test_the_shape_that_was_timed_is_the_one_that_is_told(tmp_path):
    fixed = {"a": model(tmp_path / "a.onnx", dims=(3, 4))}
    assert compare(fixed, rounds=10).batch == 3 and compare(fixed, rounds=10, batch=3).batch == 3
    with pytest.raises(ExportError, match=r"fixes the first dimension to 3; it cannot be timed at batch 8"):
        compare(fixed, rounds=10, batch=8)
    opened = {"a": model(tmp_path / "b.onnx", dims=("N", "F"))}
    assert compare(opened, rounds=10, shapes={"x": (7, 4)}).inputs == {"x": (7, 4)}
    assert compare(opened, rounds=10, inputs={"x": np.zeros((5, 4), np.float32)}).batch == 5
    assert compare({"a": model(tmp_path / "c.onnx")}, rounds=10).batch == 1


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
