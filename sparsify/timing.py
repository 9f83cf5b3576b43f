"""Run and time files in ONNX Runtime on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from sparsify.errors import ExportError
from sparsify.runtime import opened

Array = np.ndarray
Feeds = Mapping[str, Array]
"""Inputs of one call by name."""
Batches = Sequence[Feeds]
"""The inputs of several calls."""
BATCH = 32
"""Samples per call if the batch of a file may vary."""
ROUNDS = 15
SECONDS = 0.01
"""Default duration of a timing, in seconds; the call is repeated for about this long."""


def session_of(model: ir.Model, *, threads: int) -> onnxruntime.InferenceSession:
    """Open a session on the CPU; 0 threads mean one per core."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return opened(ir.to_proto(model).SerializeToString(), options)


def values_of(model: ir.Model, batches: Batches) -> dict[str, list[Array]]:
    """Run a model over batches; returns the values of each output by name, one per batch.

    It runs in one thread, which gives the same bits on every run.

    Raises:
        ExportError: If ONNX Runtime cannot run the file.
    """
    return run_over(session_of(model, threads=1), batches)


def run_over(session: onnxruntime.InferenceSession, batches: Batches) -> dict[str, list[Array]]:
    """Run a session over batches; returns the values of each output by name, one per batch.

    Raises:
        ExportError: If the file fails on the inputs.
    """
    outputs, taken = ([value.name for value in values] for values in (session.get_outputs(), session.get_inputs()))
    found: dict[str, list[Array]] = {name: [] for name in outputs}
    for feeds in batches:
        try:
            results = session.run(outputs, {name: feeds[name] for name in taken})
        except Exception as error:  # the errors of ONNX Runtime have no common base class
            raise ExportError(
                f"ONNX Runtime fails on the file: {(str(error).splitlines() or [type(error).__name__])[0]}."
            ) from error
        for name, value in zip(outputs, results, strict=True):
            found[name].append(np.asarray(value))
    return found


def times(
    models: Mapping[str, tuple[ir.Model, Feeds]], *, threads: int, rounds: int = ROUNDS, seconds: float = SECONDS
) -> dict[str, float]:
    """Time files in turns; returns the median milliseconds per call of each file.

    Args:
        models: by name, a file and the inputs of its call.
        threads: number of threads of ONNX Runtime; 0 means one per core.
        rounds: number of timings per file.
        seconds: duration of one timing of the fastest file; all files repeat their calls equally often.
    """
    calls = {name: bound(session_of(model, threads=threads), feeds) for name, (model, feeds) in models.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    repeats = max(
        1, round(seconds / max(min((seconds_per_call(call, 2) for call in calls.values()), default=1.0), 1e-6))
    )
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(seconds_per_call(call, repeats))
    return {name: 1000 * statistics.median(values) for name, values in taken.items()}


def bound(session: onnxruntime.InferenceSession, feeds: Feeds) -> Callable[[], Any]:
    """Return a call with bound inputs and outputs, so that the time of small files does not include Python's work for a call."""
    outputs = session.get_outputs()
    if not all(out.type.startswith("tensor(") for out in outputs):
        return lambda: session.run([out.name for out in outputs], dict(feeds))
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_cpu_input(name, np.ascontiguousarray(value))
    for out in outputs:
        binding.bind_output(out.name)
    return lambda: session.run_with_iobinding(binding)


def seconds_per_call(call: Callable[[], Any], repeats: int) -> float:
    """Return the mean seconds per call over ``repeats`` calls, after one call that is not timed."""
    call()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
