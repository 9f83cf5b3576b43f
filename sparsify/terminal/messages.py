"""The command's messages on standard error: how it ends, and notes on the way."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from sparsify.errors import SparsifyError, SparsifyWarning

LONGEST_MESSAGE = 3500
"""Largest number of characters of an error that are printed; an error may quote user input or a whole file."""
_show = warnings.showwarning


def said(text: str) -> None:
    """Print a line on standard error."""
    print(f"sparsify: {text}", file=sys.stderr)


def ended(error: Exception) -> NoReturn:
    """End the process. A user's mistake gives one message and exit code 2, without a traceback; a defect is reported as a defect."""
    match error:
        case SparsifyError():
            _end(str(error))
        case OSError():
            name = error.filename if error.filename is not None else "a file"
            _end(f"cannot write or read {name}: {error.strerror or error}.")
        case ModuleNotFoundError(name="torch" | "onnxscript" | "onnx_ir" | "safetensors" as name):
            _end(
                f"this command needs {name}, which is not installed. Install the package with all it needs (pip install sparsify-fx); "
                f"`sparsify evaluate` needs no torch."
            )
        case MemoryError():
            _end(
                f"there is not enough memory for this ({error or 'an allocation failed'}). Lower the batch, the size of images, or workers."
            )
    traceback.print_exception(error)
    said(
        f"{type(error).__name__}: {error}\nThis is a defect of sparsify, not a mistake of yours. Report it with the lines above and the "
        f"command."
    )
    sys.exit(1)


def notes() -> Callable[..., None]:
    """Print warnings of sparsify as notes, each once; warnings of other packages are shown as usual in Python."""
    told: set[str] = set()

    def note(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if not issubclass(category, SparsifyWarning):
            _show(message, category, *where, **more)
        elif str(message) not in told:
            told.add(str(message))
            said(f"note: {message}")

    return note


def _end(message: str) -> NoReturn:
    said(message if len(message) <= LONGEST_MESSAGE else f"{message[: LONGEST_MESSAGE - 600]} ... {message[-500:]}")
    sys.exit(2)
