"""What sparse files are compared with beside dense fp32: dense int8 by ONNX Runtime's quantiser, and other runtimes where installed."""

from __future__ import annotations

import importlib.util
import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from sparsify.figures.intervals import median_interval

INSTRUCTIONS = ("amx_int8", "avx512_vnni", "avx512f", "avx_vnni", "avx2", "asimd")


def processor() -> dict[str, str]:
    """The widest instructions the processor has, and its family: names of processors alone say little on rented machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    found = {key.strip(): value.strip() for key, _, value in (text.partition(":") for text in reversed(lines))}
    flags = (found.get("flags") or found.get("Features") or "").split()
    widest = next((name for name in INSTRUCTIONS if name in flags), "unknown")
    return {"instructions": widest, "family": f"{found.get('cpu family', '?')} model {found.get('model', '?')}"}


def quantised(dense: Path, samples: Sequence[np.ndarray]) -> Path:
    """The dense file in int8, beside it: static, per channel, QDQ, by ONNX Runtime's own quantiser."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    path = dense.with_name("int8.onnx")
    if path.exists():
        return path

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            key = onnx.load(dense).graph.input[0].name
            self.rows = iter([{key: sample} for sample in samples])

        def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
            return next(self.rows, None)

    logging.disable(logging.WARNING)
    try:
        quantize_static(
            str(dense), str(path), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
        )  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)
    return path


def openvino_rows(files: Mapping[str, Path], x: np.ndarray, *, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Dense and grouped:64 in OpenVINO against the dense file in ONNX Runtime, in turn; nothing where it is not installed."""
    if importlib.util.find_spec("openvino") is None:
        return []
    import onnxruntime
    import openvino  # type: ignore[import-not-found]

    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(files["dense"]), session_options, providers=["CPUExecutionProvider"])
    key = session.get_inputs()[0].name
    calls = {"dense": lambda: session.run(None, {key: x})}
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    for row in ("dense", "grouped:64"):
        if row in files:
            compiled = openvino.Core().compile_model(str(files[row]), "CPU", settings)
            calls[f"openvino {row}"] = lambda compiled=compiled: compiled([x])
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds + 3):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if index >= 3:  # the first are warm-up
                seconds[name].append(time.perf_counter() - start)
    rows = []
    for name in list(calls)[1:]:
        ratios = [a / b for a, b in zip(seconds["dense"], seconds[name], strict=True)]
        rows.append({
            "row": name, "milliseconds": 1000 * statistics.median(seconds[name]), "times_as_fast": statistics.median(ratios),
            "interval": median_interval(ratios),
        })  # fmt: skip
    return rows
