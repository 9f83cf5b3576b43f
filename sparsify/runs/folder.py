"""The folder of a run or a grid: one process holds it, and writes nothing before its work is known to be possible."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from sparsify.errors import CheckpointError
from sparsify.files import UNFINISHED, write_atomically

LOCK = ".lock"


@contextmanager
def hold_folder(out: Path, record: str, *, resume: bool, overwrite: bool) -> Generator[Callable[[str], None]]:
    """Hold a folder for this process, and write nothing to it before the yielded function is called.

    That function takes the text of ``record``. It deletes what an earlier run left, if requested, and writes the record. If it is never
    called, the folder stays unchanged or is not created, so a command that fails early can be corrected and repeated.

    Args:
        out: the folder; created if missing.
        record: name of the file that says what was started in the folder, and by which command.
        resume: continue from what the folder holds.
        overwrite: delete what the folder holds, if it has a ``record``.

    Raises:
        CheckpointError: If the folder is in use, cannot be written, or holds something else.
    """
    made = [path for path in (out, *out.parents) if not path.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / LOCK).open("w")
    except OSError as error:
        _remove(made)
        raise CheckpointError(f"cannot write into {out}: {error.strerror}. Choose another --out.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CheckpointError(f"another run is using {out}. Wait for it, or choose another --out.") from error
        begun = False

        def begin(text: str) -> None:
            nonlocal begun
            begun = True
            if overwrite and not resume:
                for path in _present(out):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            write_atomically(out / record, text.encode())

        try:
            for unfinished in (*out.glob(f".*{UNFINISHED}"), *out.glob(f"dense/.*{UNFINISHED}")):
                unfinished.unlink()  # left by a killed process, because this one holds the lock
            if _present(out) and not resume:
                _check_replaceable(out, record, overwrite=overwrite)
            yield begin
        finally:
            if not begun and not _present(out):
                (out / LOCK).unlink(missing_ok=True)
                _remove(made)


def _present(out: Path) -> list[Path]:
    return [path for path in out.iterdir() if path.name != LOCK]


def _check_replaceable(out: Path, record: str, *, overwrite: bool) -> None:
    if not overwrite:
        raise CheckpointError(
            f"{out} is not empty. Continue it with --resume, replace it with --overwrite, or use another --out."
        )
    if not (out / record).exists():
        raise CheckpointError(
            f"{out} holds files of something else (it has no {record}); --overwrite will not delete them. Use another --out."
        )


def _remove(made: list[Path]) -> None:
    """Remove empty folders that this process created, innermost first."""
    for path in made:
        try:
            path.rmdir()
        except OSError:
            return
