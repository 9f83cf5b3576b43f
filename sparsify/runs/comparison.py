"""Runs the cells of a grid in separate processes, within a budget of cores, and compares their results."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from sparsify.errors import CheckpointError, RecipeError, ReportError, SparsifyError
from sparsify.files import write_atomically, write_json
from sparsify.reports.folder import read_answers, read_measured
from sparsify.reports.populations import Answered, beside_dense, populations
from sparsify.reports.summary import CellResult, Summary, summarise
from sparsify.reports.summary_measures import figures
from sparsify.reports.summary_page import document, markdown
from sparsify.runs.apart import check_cells, end_with_parent, how_it_ended, started
from sparsify.runs.folder import hold_folder
from sparsify.runs.grid import Cell, Grid, parse_grid
from sparsify.runs.inferring import with_task
from sparsify.runs.preflight import DATA_KEYS
from sparsify.runs.recipe import AUTO, Recipe
from sparsify.runs.toml import read_toml
from sparsify.runs.workflow import RECORD as RUN_RECORD
from sparsify.runs.workflow import run
from sparsify.training import Interrupted, stop_flag
from sparsify.untrusted import read_json

RECORD = "grid.toml"
FAILED = "failed.json"
COMPARISON = ("compare.html", "compare.md", "compare.json")
TELL_EVERY = 0.25
"""Seconds between two progress messages of a cell."""
Event = Callable[[str, Cell, Mapping[str, Any]], None]
"""Called with an event of a cell: ``found`` (finished before), ``started``, ``step`` (with step, total, loss, accuracy), ``finished``
(with the model of its ``metrics.json``), ``failed`` (with error)."""


@dataclass(frozen=True)
class Failure:
    """A cell without a result; ``defect`` is True if the error is not one that `sparsify` raises on purpose."""

    cell: Cell
    error: str
    defect: bool


@dataclass(frozen=True)
class Comparison:
    """The results of a grid, and the cells without a result."""

    summary: Summary
    failures: tuple[Failure, ...]


def run_grid(
    grid: Grid,
    out: Path,
    *,
    cores: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_event: Event | None = None,
    on_decode: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Run every cell of a grid in ``out/cells`` and write `COMPARISON` to ``out``.

    Each cell is a separate run in a separate process, so a failing cell does not affect the others. The processes end when this one ends,
    for whatever reason.

    Args:
        grid: from `parse_grid`.
        out: folder of the grid; must be new or empty unless ``resume`` or ``overwrite``.
        cores: number of cores to use in total; a cell uses its ``threads`` and ``workers``. None: all that this process may use.
        resume: keep finished cells, continue others from their checkpoints, and retry failed ones.
        overwrite: first delete what an earlier grid left in ``out``.
        on_event: called with events of cells; see `Event`.
        on_decode: called while images are decoded, once for all cells, with the number of decoded images and of all images.

    Raises:
        RecipeError: If a cell uses more than ``cores``, or cells cannot be run; names all of them, and starts none.
        CheckpointError: If the folder holds another grid, something else, or is in use.
        Interrupted: After SIGINT or SIGTERM; running cells have written their checkpoints.
        SparsifyError: If data or a model cannot be used.
    """
    grid = _with_task(grid, on_decode)
    cells = grid.cells()
    at_once = _at_once(cells, available() if cores is None else cores)
    if resume:
        _check_record(grid, out)
    with hold_folder(out, RECORD, resume=resume, overwrite=overwrite) as begin:
        found = [cell for cell in cells if finished(cell, out)] if resume else []
        waiting = [cell for cell in cells if cell not in found]
        check_cells({str(cell): cell.recipe for cell in waiting}, on_decode)
        begin(grid.to_toml())
        for cell in found:
            _tell(on_event, "found", cell)
        for cell in waiting:
            (folder_of(cell, out) / FAILED).unlink(missing_ok=True)
        _Pool(out, at_once, on_event).run(waiting)
        return write_comparison(out)


def _with_task(grid: Grid, on_decode: Callable[[int, int], None] | None) -> Grid:
    """Replace the task ``auto`` of a grid by the task that its rows share."""
    if grid.common["task"] != AUTO:
        return grid
    task = with_task(grid.cells()[0].recipe, on_decode).task
    return dataclasses.replace(grid, common={**grid.common, "task": task})


def available() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def folder_of(cell: Cell, out: Path) -> Path:
    """Return the run folder of a cell."""
    return out / "cells" / cell.folder


def finished(cell: Cell, out: Path) -> bool:
    """Return whether a cell's run is complete, that is, its report exists, which is written last."""
    return (folder_of(cell, out) / "report.html").exists()


def write_comparison(out: Path) -> Comparison:
    """Write `COMPARISON` of the finished cells, only from the files in ``out``.

    Raises:
        ReportError: If the folder is not that of a grid, no cell is finished, a file is damaged, or cells were trained on different data.
    """
    if not (out / RECORD).exists():
        raise ReportError(
            f"{out} is not the folder of a grid: it has no {RECORD}. Give the --out of `sparsify compare`."
        )
    grid = parse_grid(out / RECORD)
    cells = grid.cells()
    results = _results([cell for cell in cells if finished(cell, out)], out)
    failures = tuple(_failure(cell, out) for cell in cells if not finished(cell, out))
    if not results:
        raise ReportError(f"no cell of {out} is finished. {failures[0].cell}: {failures[0].error}")
    answered = [
        Answered(cell.name, cell.sparsity, cell.seed, content)
        for cell in cells
        if finished(cell, out) and (content := read_answers(folder_of(cell, out))) is not None
    ]
    results, found = _with_answers(results, answered), populations(answered)
    summary = summarise(results)
    title = f"{len(grid.names())} methods on {grid.common['data']}"
    missing = [(str(failure.cell), failure.error) for failure in failures]
    content = {
        **summary.to_dict(),
        "grid": {**grid.common, **dataclasses.asdict(grid.lists)},  # type: ignore[arg-type]
        "cells": [
            {"name": c.name, "bases": c.bases, "sparsity": c.sparsity, "seed": c.seed, "figures": dict(c.figures)}
            for c in results
        ],
        "exemplars": [population.to_dict() for population in found],
        "missing": [{"cell": cell, "error": error} for cell, error in missing],
    }
    write_atomically(out / "compare.md", markdown(title, summary, missing, found).encode())
    write_atomically(out / "compare.html", document(title, summary, results, missing, grid.to_toml(), found).encode())
    write_json(out / "compare.json", content)
    return Comparison(summary, failures)


def _results(cells: Sequence[Cell], out: Path) -> list[CellResult]:
    found: list[CellResult] = []
    prints: dict[tuple[Any, ...], tuple[str, Cell]] = {}
    for cell in cells:
        folder = folder_of(cell, out)
        report, history = read_measured(folder)
        if report["recipe_hash"] != _resolved(cell, folder).hash():
            raise ReportError(
                f"{folder} is a run of another recipe than the grid's. Delete it, and go on with --resume."
            )
        data = (cell.seed, *(getattr(cell.recipe, key) for key in DATA_KEYS))
        fingerprint, first = prints.setdefault(data, (report["data"]["fingerprint"], cell))
        if report["data"]["fingerprint"] != fingerprint:
            raise ReportError(
                f"the data changed between two cells: {first} and {cell} were trained on different samples. Delete the folder of the "
                f"one with the old data under {out / 'cells'}, and go on with --resume."
            )
        found.append(CellResult(cell.name, cell.bases, cell.sparsity, cell.seed, figures(report["model"]), history))
    return found


def _with_answers(results: Sequence[CellResult], answered: Sequence[Answered]) -> list[CellResult]:
    """Add the figures of `beside_dense` to those of each cell that has them."""
    known = beside_dense(answered)
    return [
        dataclasses.replace(cell, figures={**cell.figures, **known.get((cell.name, cell.sparsity, cell.seed), {})})
        for cell in results
    ]


def _resolved(cell: Cell, folder: Path) -> Recipe:
    """Return the recipe of a cell as its run recorded it: with the calibration head and the warm-up steps that the grid leaves to it."""
    try:
        record = read_toml(folder / RUN_RECORD)
        head, steps = (record.get(table, {}).get(key) for table, key in (("export", "calibrator"), ("train", "warmup")))
    except (RecipeError, AttributeError):
        return cell.recipe
    found = dict[str, Any]()
    if cell.recipe.calibrator == AUTO and isinstance(head, str):
        found["calibrator"] = head
    if not isinstance(cell.recipe.warmup, int) and isinstance(steps, int):
        found["warmup"] = steps
    return dataclasses.replace(cell.recipe, **found)  # type: ignore[type-var]


def _failure(cell: Cell, out: Path) -> Failure:
    path = folder_of(cell, out) / FAILED
    if not path.exists():
        return Failure(cell, "not finished; go on with --resume.", defect=False)
    try:
        content = read_json(path)
        error, defect = content["error"], content["defect"]
    except (OSError, ValueError, TypeError, LookupError) as damage:
        return Failure(cell, f"failed, and {path} does not say why ({damage}).", defect=True)
    return Failure(cell, str(error), defect=defect is not False)


def _check_record(grid: Grid, out: Path) -> None:
    record = out / RECORD
    if record.exists() and record.read_text(errors="replace") != grid.to_toml():
        raise CheckpointError(
            f"{out} was started with another grid; see {record}. Resume with it, or use another --out."
        )
    if not record.exists() and out.is_dir() and any(path.name != ".lock" for path in out.iterdir()):
        raise CheckpointError(f"{out} holds no grid to go on with (it has no {RECORD}). Use another --out.")


def _at_once(cells: Sequence[Cell], cores: int) -> int:
    def taken(cell: Cell) -> int:
        return cell.recipe.threads + cell.recipe.workers

    widest = max(cells, key=taken)
    if cores < taken(widest):
        raise RecipeError(
            f"a cell takes {taken(widest)} cores ({widest}: threads = {widest.recipe.threads}, workers = {widest.recipe.workers}), and "
            f"--cores is {cores}. Lower threads, or give more cores."
        )
    return cores // taken(widest)


def _tell(on_event: Event | None, what: str, cell: Cell, **details: Any) -> None:
    if on_event:
        on_event(what, cell, details)


@dataclass(frozen=True)
class _Running:
    cell: Cell
    process: BaseProcess
    updates: Connection


class _Pool:
    """Processes that run cells, at most ``at_once`` at a time."""

    def __init__(self, out: Path, at_once: int, on_event: Event | None) -> None:
        self.out, self.at_once, self.on_event = out, at_once, on_event
        self.running: list[_Running] = []

    def run(self, cells: Sequence[Cell]) -> None:
        """Run all cells; return when each is finished or has failed.

        Raises:
            Interrupted: After SIGINT or SIGTERM.
        """
        waiting = list(reversed(cells))
        with stop_flag() as stopped:
            try:
                while self.running or (waiting and not stopped()):
                    while waiting and len(self.running) < self.at_once and not stopped():
                        self._start(waiting.pop())
                    self._listen(stopping=stopped())
            finally:
                for one in self.running:
                    one.process.kill()
                    one.process.join()
            if stopped() and (left := [cell for cell in cells if not finished(cell, self.out)]):
                raise Interrupted(f"stopped; {len(left)} of {len(cells)} cells are left. Everything is in {self.out}.")

    def _start(self, cell: Cell) -> None:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = started(work, (cell, folder_of(cell, self.out), sender), str(cell))
        sender.close()
        self.running.append(_Running(cell, process, receiver))
        _tell(self.on_event, "started", cell)

    def _listen(self, *, stopping: bool) -> None:
        if stopping:
            for one in self.running:
                one.process.terminate()
        wait(
            [*(one.updates for one in self.running), *(one.process.sentinel for one in self.running)],
            timeout=TELL_EVERY,
        )
        for one in list(self.running):
            ended = not one.process.is_alive()
            self._read(one)
            if ended:
                self.running.remove(one)
                self._end(one, stopping=stopping)

    def _read(self, one: _Running) -> None:
        try:
            while one.updates.poll():
                _tell(self.on_event, "step", one.cell, **one.updates.recv())
        except EOFError:
            pass

    def _end(self, one: _Running, *, stopping: bool) -> None:
        one.process.join()
        one.updates.close()
        folder = folder_of(one.cell, self.out)
        if finished(one.cell, self.out):
            _tell(self.on_event, "finished", one.cell, **read_measured(folder)[0]["model"])
            return
        if stopping:
            return
        if not (folder / FAILED).exists():
            ended = how_it_ended(one.process)
            write_json(folder / FAILED, {"error": f"its process {ended}; see {folder / 'output.log'}.", "defect": True})
        _tell(self.on_event, "failed", one.cell, error=_failure(one.cell, self.out).error)


def work(cell: Cell, folder: Path, updates: Connection) -> None:
    """Run a cell in its process. Output of libraries goes to ``output.log`` in the run's folder."""
    end_with_parent()
    folder.mkdir(parents=True, exist_ok=True)
    log = os.open(folder / "output.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    told = 0.0

    def on_step(part: str, row: dict[str, Any]) -> None:
        nonlocal told
        now = time.monotonic()
        if part == "model" and (now - told >= TELL_EVERY or row["step"] == row["total"]):
            told = now
            try:
                updates.send(row)
            except BrokenPipeError:
                os._exit(1)

    try:
        run(cell.recipe, folder, resume=True, timed=False, rehearsed=True, on_step=on_step)
    except Interrupted:
        pass
    except (SparsifyError, OSError) as error:
        write_json(folder / FAILED, {"error": str(error), "defect": False})
    except Exception as error:
        traceback.print_exc()
        said = f"{type(error).__name__}: {error} (a defect; see {folder / 'output.log'})"
        write_json(folder / FAILED, {"error": said, "defect": True})
