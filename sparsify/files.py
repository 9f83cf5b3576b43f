"""Files written whole or not at all: under a temporary name, flushed to disk, renamed."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

UNFINISHED = ".unfinished"
"""The suffix of temporary names. A process that is killed while it writes leaves a file with this suffix."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write bytes under a temporary name in the same folder, flush to disk, rename."""
    with unfinished(path) as temporary:
        write_to_disk(temporary, [data])
        os.replace(temporary, path)


@contextlib.contextmanager
def unfinished(path: Path) -> Generator[Path]:
    """An empty file under a temporary name in the folder of ``path``, which is made; it is gone after the block, unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
    os.close(handle)
    try:
        os.chmod(name, 0o644)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def write_to_disk(path: Path, data: Iterable[bytes]) -> None:
    """Write bytes, given in pieces, and wait until the disk has them."""
    with path.open("wb") as file:
        file.writelines(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an artefact: keys sorted, atomically."""
    write_atomically(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())
