"""Progress bars of a run."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Bars:
    """One bar a part of the run, made when it first says something."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, Any] = {}

    def step(self, part: str, row: dict[str, Any]) -> None:
        """Show the trainer's step row of a part."""
        state = f"loss {row['loss']:.3f} accuracy {row['accuracy']:.3f}"
        self._show(part, row["step"], row["total"], state)

    def decode(self, done: int, total: int) -> None:
        """Show how many images are decoded."""
        self._show("decode", done, total, f"{done:,} of {total:,} images")

    def _show(self, part: str, done: int, total: int, state: str) -> None:
        if part not in self._tasks:
            self._tasks[part] = self._progress.add_task(part, total=total, state="")
        self._progress.update(self._tasks[part], completed=done, total=total, state=state)


@contextmanager
def bars(console: Console) -> Generator[Bars]:
    """Bars on ``console`` while the block runs."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        yield Bars(progress)
