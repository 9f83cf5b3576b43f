"""Instruments that watch a pipeline: print after a pass, show a diff, dump every state to a folder, record what was applied."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from sparsify.arguments import checked
from sparsify.errors import PassError
from sparsify.files import write_atomically
from sparsify.passes.base import Pass, PassLog

Instrument = Callable[[int, Pass, str, str, PassLog], None]
Record = list[tuple[Pass, PassLog]]
_RECORD: ContextVar[Record | None] = ContextVar("passes applied in the block of `recording`", default=None)


@checked(PassError)
@contextmanager
def recording() -> Generator[Record]:
    """Record all passes applied within the block, with their logs, in order. If blocks are nested, only the inner one records."""
    record: Record = []
    token = _RECORD.set(record)
    try:
        yield record
    finally:
        _RECORD.reset(token)


def note(step: Pass, log: PassLog) -> None:
    """Add a pass to the `recording` around it, if there is one."""
    record = _RECORD.get()
    if record is not None:
        record.append((step, log))


@checked(PassError)
def print_after(write: Callable[[str], object], *names: str) -> Instrument:
    """Write the program's text after each pass, or after the named ones."""

    def instrument(index: int, step: Pass, before: str, after: str, log: PassLog) -> None:
        del index, before
        if not names or step.name in names:
            write(f"// after {step}\n{log}\n{after}")

    return instrument


@checked(PassError)
def print_diff(write: Callable[[str], object]) -> Instrument:
    """Write a unified diff of the program's text for each pass."""

    def instrument(index: int, step: Pass, before: str, after: str, log: PassLog) -> None:
        del index, log
        write(diff(before, after, str(step)))

    return instrument


@checked(PassError)
def dump_to(folder: Path) -> Instrument:
    """Write ``NN-name.before.txt``, ``NN-name.after.txt`` and ``NN-name.diff`` for each pass."""

    def instrument(index: int, step: Pass, before: str, after: str, log: PassLog) -> None:
        stem = f"{index:02d}-{step.name}"
        for suffix, text in (
            ("before.txt", before),
            ("after.txt", f"// {log}\n{after}"),
            ("diff", diff(before, after, str(step))),
        ):
            write_atomically(folder / f"{stem}.{suffix}", text.encode())

    return instrument


def diff(before: str, after: str, name: str) -> str:
    """Return a unified diff of two program texts."""
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), f"before {name}", f"after {name}", lineterm="", n=1
    )
    return "\n".join(lines) + "\n"
