"""Latency of ONNX files in ONNX Runtime, measured against each other.

One session a file, the same threads for all. In every round each file is timed once, in an order drawn anew from a fixed seed, so that
no file always follows the same one, and behind a call that is not timed: caches then hold what they hold where a file is called again
and again, and not the weights of the file before it. Inputs and outputs are bound to the session beforehand. A ratio is the median over
rounds of the two times of one round, with the 95 % interval of that median by order statistics. The first file runs in a second session as
well: what that pair's interval shows is noise.
"""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import random
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper

from sparsify.errors import ExportError
from sparsify.figures.intervals import median_interval
from sparsify.reports.digits import three_digits
from sparsify.reports.headline import Headline
from sparsify.timing import bound, seconds_per_call

Interval = tuple[float, float]
TIMED_SECONDS = 0.005
"""A timing repeats the call for about this long, so that the clock's resolution and the overhead of a call do not matter."""
WARM_UP_SECONDS = 0.02
"""How long a session is called before it is timed; at least three calls."""
MOST_THREADS = 512
MOST_VALUES = 1 << 28
"""Largest number of values of a generated input, 1 GiB as float32."""
NOISY = 0.1
"""If the first file's ratio to itself differs from 1 by this much, the measurement cannot show that two files are equally fast."""
_VALUES = frozenset(
    (
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.DOUBLE,
        TensorProto.INT8,
        TensorProto.UINT8,
    )
)
_NUMPY = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class Timing:
    """The timing of one file: median and quartiles in milliseconds per call, and its speed-up over the first file.

    Attributes:
        speedup: median of (time of the first file) / (time of this one) over rounds; above 1 is faster.
        interval: 95 % interval of that median.
        bytes: size on disk.
        nonzeros, values: non-zero entries, and all entries, of the file's initializers; those of integers that are shapes or indices
            are not counted.
    """

    name: str
    milliseconds: float
    quartiles: Interval
    speedup: float
    interval: Interval
    bytes: int
    nonzeros: int
    values: int


@dataclass(frozen=True)
class Latency:
    """A comparison of files; the others are compared with the first of ``timings``.

    Attributes:
        noise: 95 % interval of the first file's ratio to itself, in a second session.
        inputs: shape of each input, by name; ``batch`` is the first dimension of the first.
    """

    timings: tuple[Timing, ...]
    noise: Interval
    threads: int
    batch: int
    rounds: int
    inputs: Mapping[str, tuple[int, ...]]
    machine: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return dataclasses.asdict(self)

    def verdict(self, timing: Timing) -> str:
        """Return what the timings show about a file compared with the first one.

        ``faster`` or ``slower``: the interval lies outside the noise band in that direction. The band is used both ways: if the first file
        is 1.05 times as fast as itself, a ratio of 0.96 is no evidence.
        ``too noisy to tell``: the interval excludes 1, but the first file differs from itself as much, or by a tenth or more.
        ``no difference beyond noise``: the interval includes 1, on a machine quiet enough to show a difference of a tenth.
        """
        low, high = timing.interval
        reach = max(self.noise[1], 1 / self.noise[0])
        if low > reach:
            return "faster"
        if high < 1 / reach:
            return "slower"
        noisy = reach >= 1 + NOISY
        return "too noisy to tell" if noisy or low > 1 or high < 1 else "no difference beyond noise"

    def table(self) -> Headline:
        """Return the rows `sparsify bench` prints."""
        columns = ("ms (quartiles)", "times as fast (95 %)", "verdict", "bytes", "non-zeros")
        return Headline(columns, tuple((row.name, self._cells(row, first=not i)) for i, row in enumerate(self.timings)))

    def _cells(self, row: Timing, *, first: bool) -> tuple[str, ...]:
        low, high = row.quartiles
        ratio = f"{row.speedup:.2f}" if first else f"{row.speedup:.2f} ({row.interval[0]:.2f} to {row.interval[1]:.2f})"
        return (
            f"{three_digits(row.milliseconds)} ({three_digits(low)} to {three_digits(high)})",
            ratio,
            "reference" if first else self.verdict(row),
            f"{row.bytes:,}",
            f"{row.nonzeros:,} of {row.values:,}",
        )

    def conditions(self) -> str:
        """One sentence: the noise, the machine, and how it was measured."""
        shapes = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in self.inputs.items())
        return (
            f"The first file against itself: {self.noise[0]:.2f} to {self.noise[1]:.2f}. {self.machine['processor']}, "
            f"{self.machine['cores']} cores, {self.threads} thread(s), inputs {shapes}, {self.rounds} rounds, ONNX Runtime "
            f"{self.machine['onnxruntime']}."
        )


def compare(
    files: Mapping[str, Path],
    *,
    inputs: Mapping[str, np.ndarray] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int | None = None,
    threads: int = 1,
    rounds: int = 50,
) -> Latency:
    """Time files against the first of them.

    Args:
        files: name -> path; all take the same inputs.
        inputs: arrays by input name. None: normal noise (zeros for integers) of the file's own shapes; the time of dense operators
            does not depend on the values.
        shapes: of inputs whose dimensions, other than the first, are not fixed in the file.
        batch: first dimension of made inputs where the file leaves it open; None: 1.
        threads: of each session.
        rounds: at least 10.

    Raises:
        ExportError: If a file is not ONNX or cannot run on a stock runtime, the inputs do not fit, or the file fixes another ``batch``.
    """
    for name, value, least, most in (
        ("rounds", rounds, 10, 10**6), ("threads", threads, 1, MOST_THREADS), ("batch", batch, 1, 10**6)
    ):  # fmt: skip
        if value is not None and not least <= value <= most:
            raise ExportError(f"{name} should be at least {least} and at most {most:,}, found {value}.")
    sessions = {name: _session(path, threads) for name, path in files.items()}
    first = next(iter(sessions))
    feeds = dict(inputs) if inputs is not None else _made_inputs(sessions[first], files[first], batch, shapes or {})
    calls: dict[str, Callable[[], Any]] = {}
    for name, session in {**sessions, "": _session(files[first], threads)}.items():
        calls[name] = _call(session, feeds, files[name or first])
    repeats = {name: _repeats(call) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order, rng = list(calls), random.Random(0)
    for _ in range(rounds):
        rng.shuffle(order)
        for name in order:
            seconds[name].append(seconds_per_call(calls[name], repeats[name]))
    rows = []
    for name, path in files.items():
        low, _, high = statistics.quantiles([1000 * value for value in seconds[name]], n=4)
        ratios = [a / b for a, b in zip(seconds[first], seconds[name], strict=True)]
        active, total = nonzeros(path)
        rows.append(
            Timing(
                name=name,
                milliseconds=1000 * statistics.median(seconds[name]),
                quartiles=(low, high),
                speedup=statistics.median(ratios),
                interval=median_interval(ratios),
                bytes=path.stat().st_size,
                nonzeros=active,
                values=total,
            )
        )
    noise = median_interval([a / b for a, b in zip(seconds[first], seconds[""], strict=True)])
    taken = {name: tuple(value.shape) for name, value in feeds.items()}
    size = next((shape[0] for shape in taken.values() if shape), 1)
    return Latency(tuple(rows), noise, threads, size, rounds, taken, machine())


def parse_shapes(items: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes by input name from ``name=1x3x224x224`` texts.

    Raises:
        ExportError: If an item is not of that form.
    """
    shapes = {}
    for item in items:
        name, equals, text = item.rpartition("=")
        sizes = text.split("x")
        if not (name and equals) or not all(re.fullmatch(r"0*[1-9]\d{0,9}", size, re.ASCII) for size in sizes):
            raise ExportError(f"--shape {item!r} should be name=1x3x224x224, sizes from 1.")
        shapes[name] = tuple(map(int, sizes))
    return shapes


def nonzeros(path: Path) -> tuple[int, int]:
    """(non-zero entries, all entries) of a file's initializers of floats and bytes, sparse ones included.

    Raises:
        ExportError: If the file is not ONNX, or the file its weights are in is missing.
    """
    try:
        graph = onnx.load(path).graph
    except Exception as error:  # the parser's own, or the file system's
        raise ExportError(f"the weights of {path} cannot be read ({type(error).__name__}: {error}).") from error
    active = total = 0
    for tensor in graph.initializer:
        if tensor.data_type in _VALUES:
            array = numpy_helper.to_array(tensor)
            active, total = active + int(np.count_nonzero(array)), total + array.size
    for sparse in graph.sparse_initializer:
        active += int(np.count_nonzero(numpy_helper.to_array(sparse.values)))
        total += math.prod(sparse.dims)
    return active, total


def machine() -> dict[str, Any]:
    """Return what the figures hold for: processor, cores this process may use, system, ONNX Runtime."""
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
    session: onnxruntime.InferenceSession, path: Path, batch: int | None, shapes: Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray]:
    rng, made, is_open = np.random.default_rng(0), {}, False
    unknown = shapes.keys() - {given.name for given in session.get_inputs()}
    if unknown:
        names = ", ".join(given.name for given in session.get_inputs())
        raise ExportError(f"{path} has no input {sorted(unknown)[0]!r}; its inputs are {names}.")
    for given in session.get_inputs():
        shape = list(shapes.get(given.name, given.shape))
        if shape and not isinstance(shape[0], int):
            shape[0], is_open = batch or 1, True
        if not all(isinstance(size, int) for size in shape):
            raise ExportError(
                f"input {given.name!r} of {path} has shape {given.shape}; give one with --shape {given.name}=1x3x224x224."
            )
        if math.prod(shape) > MOST_VALUES:
            raise ExportError(
                f"input {given.name!r} of {path} would have {math.prod(shape):,} values, {shape}; at most {MOST_VALUES:,} are made up. "
                f"Lower --batch, or give a smaller --shape."
            )
        if given.type not in _NUMPY:
            raise ExportError(f"input {given.name!r} of {path} is {given.type}; only numbers and bools can be made up.")
        kind = np.dtype(_NUMPY[given.type])
        made[given.name] = rng.standard_normal(shape).astype(kind) if kind.kind == "f" else np.zeros(shape, kind)
    fixed = {value.shape[0] for value in made.values() if value.ndim}
    if batch is not None and not is_open and batch not in fixed:
        raise ExportError(
            f"{path} or --shape fixes the first dimension to {', '.join(map(str, sorted(fixed)))}; it cannot be timed at batch {batch}. "
            f"Leave --batch out, or export the model with a dynamic batch."
        )
    return made


def _call(session: onnxruntime.InferenceSession, feeds: Mapping[str, np.ndarray], path: Path) -> Callable[[], Any]:
    wanted = [given.name for given in session.get_inputs()]
    if set(wanted) != set(feeds):
        raise ExportError(f"{path} takes {', '.join(wanted)}; the inputs at hand are {', '.join(feeds)}.")
    call = bound(session, feeds)
    try:
        start, count = time.perf_counter(), 0
        while count < 3 or time.perf_counter() - start < WARM_UP_SECONDS:
            call()
            count += 1
    except Exception as error:
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())
        raise ExportError(f"{path} does not run on {shapes}: {str(error).splitlines()[0]}") from error
    return call


def _repeats(call: Callable[[], Any]) -> int:
    fastest = min(seconds_per_call(call, 1) for _ in range(5))
    return max(1, math.ceil(TIMED_SECONDS / max(fastest, 1e-7)))
