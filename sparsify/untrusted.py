"""Safe reading of files of unknown origin: regular files only, of a bounded size, and JSON with bounded depth and numbers.

JSON itself has no limits: a line of brackets can exhaust the stack, and a number with a million digits the time.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

LARGEST_DOCUMENT = 32 << 20
"""Largest number of bytes of a JSON document; as Python objects it takes up to 30 times as much memory."""
DEEPEST = 100
"""Largest number of nested levels."""
INTEGERS = range(-(2**63), 2**63)


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    """Parse a JSON document.

    Args:
        text: the document, at most `LARGEST_DOCUMENT` bytes.
        finite: refuse NaN and infinite numbers.

    Raises:
        ValueError: If it is not JSON, is too large or too deeply nested, or holds a number of more than 64 bits or one that is refused.
    """
    if len(text) > LARGEST_DOCUMENT:
        raise ValueError(f"it has {len(text):,} bytes of JSON, more than {LARGEST_DOCUMENT:,}")

    def number(digits: str) -> float:
        value = float(digits)
        if finite and not math.isfinite(value):
            _refuse_number(digits)
        return value

    try:
        value = json.loads(
            text, parse_int=_integer, parse_float=number, parse_constant=_refuse_number if finite else None
        )
    except RecursionError as error:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep") from error
    level, depth = [value], 0
    while level:
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")
        inner = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list))]
        level, depth = [item for items in inner for item in items], depth + 1
    return value


def read_json(path: Path, *, finite: bool = True) -> Any:
    """Parse a JSON file; reads at most `LARGEST_DOCUMENT` bytes.

    Raises:
        OSError: If the file cannot be read, or is not a regular file.
        ValueError: As for `parse_json`, or if the file is not UTF-8.
    """
    return parse_json(read_text(path), finite=finite)


def read_text(path: Path, *, largest: int = LARGEST_DOCUMENT) -> str:
    """Read the text of a regular file of at most ``largest`` bytes.

    Raises:
        OSError: If the file cannot be read, or is not a regular file (reading a device or a pipe would never end).
        ValueError: If it is larger, or not UTF-8.
    """
    regular_size(path)
    with path.open("rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"it is larger than {largest:,} bytes")
    return content.decode()


def regular_size(path: Path) -> int:
    """Return the size in bytes of a regular file; links are followed.

    Raises:
        OSError: If the file does not exist, or is a folder, a device or a pipe (reading these would never end).
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a device or a pipe, not a file", str(path))
    return status.st_size


def _integer(digits: str) -> int:
    if len(digits) > 20 or int(digits) not in INTEGERS:
        _refuse_number(digits)
    return int(digits)


def _refuse_number(digits: str) -> NoReturn:
    raise ValueError(
        f"it holds the number {digits[:30]}{'...' * (len(digits) > 30)}, which is not finite or has more than 64 bits"
    )
