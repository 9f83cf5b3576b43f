"""Write files completely or not at all: under a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

UNFINISHED = ".unfinished"
"""Suffix of temporary names. A process that is killed while it writes leaves a file with this suffix."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write bytes to a temporary file in the same folder, flush it to disk, and rename it to ``path``."""
    with unfinished(path) as temporary:
        write_to_disk(temporary, [data])
        os.replace(temporary, path)


@contextlib.contextmanager
def unfinished(path: Path) -> Generator[Path]:
    """Make an empty temporary file in the folder of ``path``, and the folder if needed; yields the file's path.

    After the block, the file is deleted unless it was renamed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
    os.close(handle)
    try:
        os.chmod(name, 0o644)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def write_to_disk(path: Path, data: Iterable[bytes]) -> None:
    """Write pieces of bytes to a file and wait until they are on disk."""
    with path.open("wb") as file:
        file.writelines(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as JSON with sorted keys, atomically; as `strict_json`."""
    write_atomically(path, (strict_json(value, indent=1, sort_keys=True) + "\n").encode())


def strict_json(value: Any, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """Return a value as JSON that every reader takes: NaN and infinity, which JSON does not have, become ``null``.

    Examples:
        >>> from sparsify.files import strict_json
        >>> strict_json({"risk": float("nan"), "bounds": (0.5, float("inf"))})
        '{"risk": null, "bounds": [0.5, null]}'
    """
    return json.dumps(_finite(value), indent=indent, sort_keys=sort_keys, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
