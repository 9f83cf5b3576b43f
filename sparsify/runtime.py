"""Opens files in ONNX Runtime, on the CPU."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from sparsify.errors import ExportError, LoadError
from sparsify.untrusted import regular_size

LARGEST_FILE = 1 << 31
"""Bytes of an ONNX file in one part: fewer than this."""


def opened(source: bytes | str, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """Open a session on the CPU, given the bytes or the path of a file.

    Raises:
        ExportError: If ONNX Runtime has no kernel for an operator of the file, or refuses the file for another reason.
    """
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the errors of ONNX Runtime have no common base class
        lines = str(error).splitlines() or [type(error).__name__]
        raise ExportError(
            f"ONNX Runtime cannot run the file: {lines[0]}. It has few operators in float64, float16 and bfloat16: convert such a "
            f"model with .float() before it is traced."
        ) from error


def open_file(path: Path, *, threads: int = 0) -> onnxruntime.InferenceSession:
    """Open a file of unknown origin: a regular file of less than `LARGEST_FILE` bytes.

    Args:
        path: path of the file.
        threads: number of threads; 0 means one per core.

    Raises:
        LoadError: If there is no such file, it is a folder, a device or a pipe, is too large, or is not ONNX.
    """
    try:
        size = regular_size(path)
    except FileNotFoundError as error:
        raise LoadError(f"there is no file {path}. Check the path.") from error
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror or error}.") from error
    if size >= LARGEST_FILE:
        raise LoadError(f"{path} has {size:,} bytes; an ONNX file in one part has fewer than {LARGEST_FILE:,}.")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong with the file is in the exception
    options.intra_op_num_threads = threads
    try:
        return opened(str(path), options)
    except ExportError as error:
        raise LoadError(f"{path} cannot be opened: {error}") from error
