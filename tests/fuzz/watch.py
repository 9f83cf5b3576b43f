"""What a reader does while a spoiled file is read: audited by Python itself, with its time and its memory."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsify.errors import SparsifyError

SECONDS, BYTES = 10.0, 1 << 30
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.connect",
    "ctypes.dlopen",
    "os.kill",
    "shutil.",
    "os.symlink",
    "os.link",
    "urllib.Request",
    "webbrowser.open",
    "builtins.input",
)
CHANGING = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_seen: list[str] = []
_allowed: list[str] = []
_on = [False, False]  # installed, watching


@dataclass(frozen=True)
class Outcome:
    """``refused`` by one of the project's errors, ``accepted``, or ``escaped``, and how."""

    kind: str
    detail: str = ""


def watched(read: Callable[[], Any], folder: Path, *, writes: bool) -> Outcome:
    """Run ``read`` in ``folder`` and say how it ended.

    Args:
        read: the reader, with its file.
        folder: the working folder, where the canary would appear.
        writes: whether the reader may write files below ``folder``.
    """
    _install()
    _seen.clear()
    _allowed[:] = [str(folder.resolve()) + os.sep] if writes else []
    before, memory, start = {*os.listdir(folder)}, _resident(), time.process_time()
    _on[1] = True
    try:
        read()
        outcome = Outcome("accepted")
    except SparsifyError as error:
        outcome = Outcome("refused", str(error))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome = Outcome("escaped", f"{type(error).__name__}: {error}"[:300])
    finally:
        _on[1] = False
    seconds, grown = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - memory
    made = {*os.listdir(folder)} - before
    if _seen:
        return Outcome("escaped", f"did {_seen[0]}")
    if made and not writes:
        return Outcome("escaped", f"made {sorted(made)}")
    if seconds > SECONDS:
        return Outcome("escaped", f"took {seconds:.1f} s")
    if grown > BYTES and _resident_peak_is_new(grown):
        return Outcome("escaped", f"took {grown >> 20} MiB")
    return outcome


_peak = [0]


def _resident_peak_is_new(grown: int) -> bool:
    """Whether this case raised the highest memory of the process, which is all that the system tells."""
    del grown
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    new, _peak[0] = highest > _peak[0], highest
    return new


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _install() -> None:
    if _on[0]:
        return
    _on[0] = True
    _peak[0] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.addaudithook(_heard)


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if not _on[1]:
        return
    if event.startswith(FORBIDDEN) or (event == "import" and str(arguments[0]) in ("antigravity", "this")):
        _seen.append(f"{event} {str(arguments)[:150]}")
    elif event == "open" or event.startswith(CHANGING):
        flags = arguments[2] if event == "open" and len(arguments) > 2 else WRITES
        if isinstance(flags, int) and flags & WRITES and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if path != os.devnull and not any(path.startswith(place) for place in _allowed):
                _seen.append(f"{event} {path[:150]}")
