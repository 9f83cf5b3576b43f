"""Latency of ONNX files in ONNX Runtime, measured against each other.

One session a file, the same threads for all. In every round each file is timed once, in an order that rotates; a ratio is the median
over rounds of the two times of one round, with the 95 % interval of that median by order statistics. The first file runs in a
second session as well: what that pair's interval shows is noise.
"""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from sparsify.errors import ExportError

Interval = tuple[float, float]
TIMED_SECONDS = 0.002
"""A timing repeats the call until about this long, so that the clock and the call itself do not matter."""
_NUMPY = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class Timing:
    """One file: median and quartiles in milliseconds a call, and how many times faster than the first file it is.

    Attributes:
        speedup: median of (time of the first file) / (time of this one) over rounds; above 1 is faster.
        interval: 95 % interval of that median.
        bytes: size on disk.
        nonzeros: non-zero entries of the file's initializers.
    """

    name: str
    milliseconds: float
    quartiles: Interval
    speedup: float
    interval: Interval
    bytes: int
    nonzeros: int


@dataclass(frozen=True)
class Latency:
    """A comparison; the first of ``timings`` is what the others are compared with.

    Attributes:
        noise: 95 % interval of the first file's ratio to itself, in a second session.
    """

    timings: tuple[Timing, ...]
    noise: Interval
    threads: int
    batch: int
    rounds: int
    machine: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return dataclasses.asdict(self)

    def verdict(self, timing: Timing) -> str:
        """``faster``, ``slower``, or ``no difference beyond noise``: the interval must leave both 1 and the noise behind."""
        low, high = timing.interval
        if low > max(1.0, self.noise[1]):
            return "faster"
        if high < min(1.0, self.noise[0]):
            return "slower"
        return "no difference beyond noise"


def compare(
    files: Mapping[str, Path],
    *,
    inputs: Mapping[str, np.ndarray] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int = 1,
    threads: int = 1,
    rounds: int = 50,
) -> Latency:
    """Time files against the first of them.

    Args:
        files: name -> path; all take the same inputs.
        inputs: arrays by input name. None: normal noise (zeros for integers) of the file's own shapes; the time of dense operators
            does not depend on the values.
        shapes: of inputs whose dimensions, other than the first, are not fixed in the file.
        batch: first dimension of made inputs, where it is not fixed in the file.
        threads: of each session.
        rounds: at least 10.

    Raises:
        ExportError: If a file is not ONNX, cannot run on a stock runtime, or the inputs do not fit.
    """
    for name, value, least in (("rounds", rounds, 10), ("threads", threads, 1), ("batch", batch, 1)):
        if value < least:
            raise ExportError(f"{name} should be at least {least}, found {value}.")
    sessions = {name: _session(path, threads) for name, path in files.items()}
    first = next(iter(sessions))
    feeds = dict(inputs) if inputs is not None else _made_inputs(sessions[first], files[first], batch, shapes or {})
    calls: dict[str, Callable[[], Any]] = {}
    for name, session in {**sessions, "": _session(files[first], threads)}.items():
        calls[name] = _call(session, feeds, files[name or first])
    repeats = _repeats(calls[first])
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for index in range(rounds):
        for name in order[index % len(order) :] + order[: index % len(order)]:
            seconds[name].append(_timed(calls[name], repeats))
    rows = []
    for name, path in files.items():
        low, _, high = statistics.quantiles([1000 * value for value in seconds[name]], n=4)
        ratios = [a / b for a, b in zip(seconds[first], seconds[name], strict=True)]
        rows.append(
            Timing(
                name=name,
                milliseconds=1000 * statistics.median(seconds[name]),
                quartiles=(low, high),
                speedup=statistics.median(ratios),
                interval=median_interval(ratios),
                bytes=path.stat().st_size,
                nonzeros=nonzeros(path),
            )
        )
    noise = median_interval([a / b for a, b in zip(seconds[first], seconds[""], strict=True)])
    return Latency(tuple(rows), noise, threads, batch, rounds, machine())


def median_interval(values: Sequence[float]) -> Interval:
    """95 % interval of the median by order statistics (normal approximation of the binomial ranks).

    Args:
        values: at least 6.
    """
    ordered, n = sorted(values), len(values)
    reach = 1.96 * math.sqrt(n) / 2
    low = max(math.floor(n / 2 - reach), 0)
    high = min(math.ceil(n / 2 + reach), n - 1)
    return ordered[low], ordered[high]


def nonzeros(path: Path) -> int:
    """Non-zero entries of a file's floating-point initializers, sparse ones included."""
    graph = onnx.load(path).graph
    arrays = [numpy_helper.to_array(i) for i in graph.initializer]
    arrays += [numpy_helper.to_array(i.values) for i in graph.sparse_initializer]
    return sum(int(np.count_nonzero(a)) for a in arrays if a.dtype.kind == "f")


def machine() -> dict[str, Any]:
    """What the figures hold for: processor, cores this process may use, system, ONNX Runtime."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass  # not Linux: the platform's own name stays
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": name,
        "cores": cores,
        "system": f"{platform.system()} {platform.machine()}",
        "onnxruntime": onnxruntime.__version__,
    }


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if threads > 1:  # idle sessions must not spin on the cores of the one that is timed
        options.add_session_config_entry("session.force_spinning_stop", "1")
    if not path.is_file():
        raise ExportError(f"there is no file {path}.")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExportError(
            f"ONNX Runtime cannot load {path}: {reason}. Is it an ONNX file of standard operators?"
        ) from error


def _made_inputs(
    session: onnxruntime.InferenceSession, path: Path, batch: int, shapes: Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray]:
    rng, made = np.random.default_rng(0), {}
    unknown = shapes.keys() - {given.name for given in session.get_inputs()}
    if unknown:
        names = ", ".join(given.name for given in session.get_inputs())
        raise ExportError(f"{path} has no input {sorted(unknown)[0]!r}; its inputs are {names}.")
    for given in session.get_inputs():
        shape = list(shapes.get(given.name, given.shape))
        if shape and not isinstance(shape[0], int):
            shape[0] = batch
        if not all(isinstance(size, int) for size in shape):
            raise ExportError(
                f"input {given.name!r} of {path} has shape {given.shape}; give one with --shape {given.name}=1x3x224x224."
            )
        if given.type not in _NUMPY:
            raise ExportError(f"input {given.name!r} of {path} is {given.type}; only numbers and bools can be made up.")
        kind = np.dtype(_NUMPY[given.type])
        made[given.name] = rng.standard_normal(shape).astype(kind) if kind.kind == "f" else np.zeros(shape, kind)
    return made


def _call(session: onnxruntime.InferenceSession, feeds: Mapping[str, np.ndarray], path: Path) -> Callable[[], Any]:
    wanted = [given.name for given in session.get_inputs()]
    if set(wanted) != set(feeds):
        raise ExportError(f"{path} takes {', '.join(wanted)}; the inputs at hand are {', '.join(feeds)}.")
    names, given = [out.name for out in session.get_outputs()], dict(feeds)
    try:
        for _ in range(3):
            session.run(names, given)
    except Exception as error:
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in given.items())
        raise ExportError(f"{path} does not run on {shapes}: {str(error).splitlines()[0]}") from error
    return lambda: session.run(names, given)


def _repeats(call: Callable[[], Any]) -> int:
    fastest = min(_timed(call, 1) for _ in range(5))
    return max(1, math.ceil(TIMED_SECONDS / max(fastest, 1e-7)))


def _timed(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
