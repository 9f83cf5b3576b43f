"""Files of one program timed in turn in ONNX Runtime on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime

from sparsify.errors import ExportError
from sparsify.exporters.batch_range import range_in

Array = np.ndarray
Feeds = Mapping[str, Array]
"""Values by input name, [N, ...]."""
Written = Callable[[onnx.ModelProto], onnx.ModelProto]
"""What a file becomes before it is written; trials time that."""
BATCH = 32
"""Samples run at a time, where a file leaves the batch open."""
ROUNDS = 15
SECONDS = 0.01
"""A timing repeats the call until about this long, unless it is said otherwise."""


def session_of(model: onnx.ModelProto, *, threads: int) -> onnxruntime.InferenceSession:
    """A session on the CPU; 0 threads: one a core."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return opened(model.SerializeToString(), options)


def opened(source: bytes | str, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """A session on the CPU for the bytes or the path of a file.

    Raises:
        ExportError: If ONNX Runtime has no kernel for an operator of the file, or refuses it otherwise.
    """
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own kinds share no base of their own
        lines = str(error).splitlines() or [type(error).__name__]
        raise ExportError(
            f"ONNX Runtime cannot run the file: {lines[0]}. It has few operators in float64, float16 and bfloat16: convert such a "
            f"model with .float() before it is traced."
        ) from error


def batches(model: onnx.ModelProto, feeds: Feeds) -> Iterator[dict[str, Array]]:
    """The samples in batches of sizes that the file takes; a smaller last one that it does not take is left out."""
    size = fixed_batch(model)
    allowed = range_in({entry.key: entry.value for entry in model.metadata_props})
    count = min(len(values) for values in feeds.values())
    start = 0
    for taken in [size] * (count // size) if size else allowed.pieces(count, BATCH):
        yield {name: values[start : start + taken] for name, values in feeds.items()}
        start += taken


def fixed_batch(model: onnx.ModelProto) -> int | None:
    """The first dimension of the inputs, or None where it is open."""
    return model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or None


def values_of(model: onnx.ModelProto, name: str, feeds: Feeds, *, threads: int = 1) -> Array:
    """An output over all samples, [N, ...]. One thread gives the same bits on every run."""
    session = session_of(model, threads=threads)
    return np.concatenate([np.asarray(session.run([name], feed)[0]) for feed in batches(model, feeds)])


def times(
    models: Mapping[str, tuple[onnx.ModelProto, Feeds]], *, threads: int, rounds: int = ROUNDS, seconds: float = SECONDS
) -> dict[str, float]:
    """Median milliseconds a call of each file on its feeds, the files taking turns; a timing of the fastest takes about ``seconds``."""
    calls = {name: _call(session_of(model, threads=threads), feeds) for name, (model, feeds) in models.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    repeats = max(1, round(seconds / max(min((_seconds(call, 2) for call in calls.values()), default=1.0), 1e-6)))
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(_seconds(call, repeats))
    return {name: 1000 * statistics.median(values) for name, values in taken.items()}


def _call(session: onnxruntime.InferenceSession, feeds: Feeds) -> Callable[[], Any]:
    given = {name: np.ascontiguousarray(value) for name, value in feeds.items()}
    return lambda: session.run(None, given)


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    call()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
