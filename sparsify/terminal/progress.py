"""The bars that the command shows while it works."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from sparsify.runs.comparison import Event
    from sparsify.runs.grid import Cell

Decode = Callable[[int, int], None]
Step = Callable[[str, dict[str, Any]], None]


@contextmanager
def run_bars() -> Generator[tuple[Step, Decode]]:
    """Show one bar per model of a run on standard error; yields the callbacks that update them."""
    with _bars() as bars:
        tasks: dict[str, TaskID] = {}

        def on_step(part: str, row: dict[str, Any]) -> None:
            if part not in tasks:
                tasks[part] = bars.add_task(part, total=row["total"], state="")
            bars.update(tasks[part], completed=row["step"], state=_state(row))

        yield on_step, _decoding(bars)


@contextmanager
def grid_bars(total: int) -> Generator[tuple[Event, Decode]]:
    """Show one bar for the grid and one per running cell on standard error; prints a line when a cell ends. Yields the callbacks."""
    with _bars() as bars:
        whole = bars.add_task("cells", total=total, state="")
        tasks: dict[str, TaskID] = {}
        ended: list[str] = []

        def end(cell: Cell, said: str) -> None:
            if str(cell) in tasks:
                bars.remove_task(tasks.pop(str(cell)))
            ended.append(said)
            bars.update(whole, completed=len(ended), state=f"{len(ended)} of {total}")
            if said:
                bars.console.print(f"{len(ended)} of {total}: {said}", highlight=False, markup=False, soft_wrap=True)

        def on_event(what: str, cell: Cell, details: Mapping[str, Any]) -> None:
            match what:
                case "started":
                    tasks[str(cell)] = bars.add_task(str(cell), total=None, state="starts")
                case "step":
                    state = _state(details)
                    bars.update(tasks[str(cell)], completed=details["step"], total=details["total"], state=state)
                case "found":
                    end(cell, "")
                case "finished":
                    end(cell, f"{cell}, {_result(details)}")
                case "failed":
                    end(cell, f"{cell} failed: {details['error']}")

        yield on_event, _decoding(bars)


def _bars() -> Progress:
    description, state = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[state]}"))
    columns = (description, BarColumn(), state, TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True, markup=False, emoji=False))


def _decoding(bars: Progress) -> Decode:
    tasks: list[TaskID] = []

    def on_decode(done: int, total: int) -> None:
        if not tasks:
            tasks.append(bars.add_task("decode", total=total, state=""))
        bars.update(tasks[0], completed=done, total=total, state=f"{done:,} of {total:,} images")

    return on_decode


def _result(model: Mapping[str, Any]) -> str:
    """Return the headline figure of a finished model."""
    if "figures" in model:
        value = model["figures"][model["headline"]]
        return f"{model['headline']} {'not defined' if value is None else format(value, '.4f')}"
    return f"accuracy {model['accuracy']:.4f}, ECE {model['ece_after']:.4f} calibrated"


def _state(row: Mapping[str, Any]) -> str:
    accuracy = f" accuracy {row['accuracy']:.3f}" if "accuracy" in row else ""
    return f"loss {row['loss']:.3f}{accuracy} density {row['density']:.3f}"
