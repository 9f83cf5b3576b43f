"""Test accuracy on CIFAR-10 against the time of training: dense, narrower dense and grouped networks, alone and taught by the dense one.

A run trains a network for a number of steps, with a learning rate that falls to 0 within them, and its time is that of the training loop:
batches, forward and backward passes, those of a teacher, `trainer.step` with its rounds. A budget is the number of steps that the dense
network gets. The others get more, by the factor `steps` of their row, so that they take about as long; what they take is measured. The
teacher is the dense network of the same seed and the largest budget, whose own training is a figure of its own.

What a row reaches in the time of the dense network is read, for each seed, from the line through its runs over the logarithm of time; past
its longest run it keeps that accuracy. A row is ahead only if its range over seeds overlaps with no other's.

A finished run is a line of the JSON file and is not done again, so a benchmark that was stopped goes on with the same command.

python benchmarks/train_frontier.py --jobs 2                     # all runs, an hour on two cores
python benchmarks/train_frontier.py --only dense rigl --budgets 320 --seeds 0
python benchmarks/train_frontier.py --table                      # tables, sentences and the plot of what is stored
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import itertools
import json
import math
import multiprocessing
import statistics
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import sparsify as sp
from sparsify.calibration import evaluate
from sparsify.files import write_atomically
from sparsify.loading import Data, load_data
from sparsify.loading.augmentation import augmented
from sparsify.methods import Method
from sparsify.pages.plots import canvas, shade, svg
from sparsify.reports.latency import machine
from sparsify.runs.comparison import end_with_parent
from sparsify.training.batches import Batches
from sparsify.training.settings import Settings, build_optimizer, lr_factor

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from cifar import ResNet

ROOT = Path(__file__).parents[1]
NARROWER = 0.375
"""Width of the narrower network; it has as many MACs as a grouped one at 90 %."""
SPARSE = {"density": 0.1, "pattern": "grouped:64", "keep_dense": ("stem.weight", "*shortcut*", "head.weight")}
GROUPED = "grouped:64, 90 %"
CLOCKS = {"wall": "seconds", "cpu": "cpu_seconds"}
SHARED = ("batch", "lr", "threads")
"""Options of all runs of a table."""
Cell = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A network and how it is trained.

    Attributes:
        label: its name in tables.
        method: name of the method.
        steps: steps per step of the dense network, so that both take about as long.
        taught: whether it learns from the dense network.
        width: of the network.
        options: of a sparse method.
    """

    label: str
    method: str
    steps: float
    taught: bool = False
    width: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Method:
        """Return the method."""
        made = sp.methods.build(self.method, {} if self.method == "dense" else {**SPARSE, **self.options})
        return sp.methods.distilled(made) if self.taught else made


SHORT = {"prune_until": 0.25}
"""GraNet's dense start ends early."""
ROWS = {
    "dense": Row("dense", "dense", 1),
    "narrower": Row("narrower dense, equal MACs", "dense", 2.8, width=NARROWER),
    "gmp": Row(f"gmp, {GROUPED}", "gmp", 1.25),
    "rigl": Row(f"rigl, {GROUPED}", "rigl", 2),
    "granet": Row(f"granet with a short dense start, {GROUPED}", "granet", 1.6, options=SHORT),
    "taught-narrower": Row("narrower dense, taught", "dense", 1.6, taught=True, width=NARROWER),
    "taught-gmp": Row("gmp, taught", "gmp", 1, taught=True),
    "taught-rigl": Row("rigl, taught", "rigl", 1.25, taught=True),
    "taught-granet": Row("granet, taught", "granet", 1, taught=True, options=SHORT),
}


def network(width: float = 1.0) -> nn.Module:
    """A residual network whose layers are wide and whose images are small: 128 channels at 8 x 8 and 256 at 4 x 4, after a stem of 64.

    Args:
        width: factor of the channels, rounded to a multiple of 8.
    """
    widths = tuple(max(8, 8 * round(channels * width / 8)) for channels in (64, 128, 256))
    return ResNet(blocks=(0, 1, 2), widths=widths, stem_stride=2)


def run(job: Mapping[str, Any], data: str, folder: Path) -> Cell:
    """Train and test one network; a dense one, which may teach, is saved in ``folder``.

    Returns:
        The job, and: accuracy on the test part; seconds and cpu_seconds of training; steps; samples; macs of a sample at the end; how many
        weights are masked, and how many of them were stored compact; the machine.
    """
    torch.set_num_threads(job["threads"])
    warnings.simplefilter("ignore")
    row, parts = ROWS[job["row"]], loaded(data)
    torch.manual_seed(job["seed"])
    program = sp.trace(network(row.width), (parts.example(),))
    teacher = sp.Program.load(dense_file(folder, job, job["teacher"])).eval() if row.taught else None
    steps = max(1, round(job["budget"] * row.steps))
    times, forms = train(row, program, parts, teacher, job, steps)
    program.eval()
    right = evaluate(program, parts.test)["logits"].argmax(1) == parts.test.targets
    if job["row"] == "dense":
        program.save(dense_file(folder, job, job["budget"]))
    return {
        **job, "accuracy": right.double().mean().item(), **times, "steps": steps, "samples": steps * job["batch"],
        "macs": program.costs().macs_active, "compact": sum(form.startswith("compact") for form in forms.values()),
        "masked": len(forms), "machine": dict(machine()), "torch": torch.__version__,
    }  # fmt: skip


@functools.cache
def loaded(path: str) -> Data:
    return load_data(path, seed=0)


def train(
    row: Row, program: sp.Program, parts: Data, teacher: sp.Program | None, job: Mapping[str, Any], steps: int
) -> tuple[dict[str, float], dict[str, str]]:
    """Train ``program`` for a number of steps; returns the seconds by either clock, and how weights were stored."""
    settings = Settings(
        epochs=1, batch_size=job["batch"], lr=job["lr"], warmup=steps // 20, device="cpu", seed=job["seed"]
    )
    batches = Batches(augmented(parts.train, "crop-flip"), settings, torch.device("cpu"))
    optimizer = build_optimizer(program.train(), settings)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, steps, settings))
    wall, cpu = time.perf_counter(), time.process_time()
    trainer = sp.attach(row.build(), program, optimizer, total_steps=steps, seed=job["seed"], teacher=teacher)
    while trainer.steps < steps:
        for x, y in itertools.islice(batches.epoch(trainer.steps), steps - trainer.steps):
            trainer.loss(program(x), y, inputs=x).backward()
            trainer.step()
            scheduler.step()
            optimizer.zero_grad()
    trainer.finish()
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}, trainer.forms


def dense_file(folder: Path, job: Mapping[str, Any], budget: int) -> Path:
    """The program of the dense network of a job's seed and options."""
    return folder / f"dense_{budget}_{'_'.join(str(job[name]) for name in ('seed', *SHARED))}.sparsify"


def is_of(job: Mapping[str, Any], cell: Cell) -> bool:
    return job.items() <= cell.items()


def run_all(jobs: Sequence[Cell], options: argparse.Namespace) -> int:
    """Do the runs that are not stored, teachers first; returns how many failed."""
    cells = stored(options.json)
    left = [job for job in jobs if not any(is_of(job, cell) for cell in cells)]
    print(f"{len(jobs) - len(left)} runs are stored, {len(left)} are left", flush=True)
    missing = {
        dense_file(options.folder, job, job["teacher"]): {
            **{name: job[name] for name in job if name != "teacher"}, "row": "dense", "budget": job["teacher"]
        }
        for job in left
        if "teacher" in job
    }  # fmt: skip
    teachers = [job for path, job in missing.items() if not path.exists()]
    options.folder.mkdir(parents=True, exist_ok=True)
    rest = [job for job in left if job not in teachers]
    return sum(_run(part, options, cells) for part in (teachers, rest) if part)


def _run(jobs: Sequence[Cell], options: argparse.Namespace, cells: list[Cell]) -> int:
    """Do runs, and store each as soon as it ends; returns how many failed."""
    if options.jobs == 1:
        for job in jobs:
            _store(job, run(job, options.data, options.folder), options, cells)
        return 0
    failed, spawn = 0, multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.jobs, spawn, end_with_parent) as pool:
        running = {pool.submit(run, job, options.data, options.folder): job for job in jobs}
        for future in concurrent.futures.as_completed(running):
            if error := future.exception():  # a run that fails costs the others nothing
                print(f"{running[future]}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                failed += 1
            else:
                _store(running[future], future.result(), options, cells)
    return failed


def _store(job: Cell, cell: Cell, options: argparse.Namespace, cells: list[Cell]) -> None:
    """Store a run, in place of an earlier one of the same job."""
    cells[:] = [*(other for other in cells if not is_of(job, other)), {**cell, "jobs": options.jobs}]
    cells.sort(key=lambda cell: (list(ROWS).index(cell["row"]), cell["budget"], cell["seed"]))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.json, encoded(cells))
    figures = f"{100 * cell['accuracy']:.2f} % {cell['seconds']:.1f} s wall {cell['cpu_seconds']:.1f} s CPU"
    print(f"{cell['row']:16} budget {cell['budget']:5} seed {cell['seed']} {figures}", flush=True)


def encoded(cells: Sequence[Cell]) -> bytes:
    """One run per line."""
    lines = ",\n ".join(json.dumps(cell) for cell in cells)
    return f'{{"cells": [\n {lines}\n]}}\n'.encode()


def stored(path: Path) -> list[Cell]:
    return json.loads(path.read_text())["cells"] if path.exists() else []


Figures = dict[int, dict[int, tuple[float, float]]]
"""budget -> seed -> (seconds of training, accuracy)"""


def by_row(cells: Iterable[Cell], clock: str) -> dict[str, Figures]:
    """Seconds and accuracy of every run, by row, budget and seed."""
    found: dict[str, Figures] = {}
    for cell in cells:
        figures = (cell[CLOCKS[clock]], cell["accuracy"])
        found.setdefault(cell["row"], {}).setdefault(cell["budget"], {})[cell["seed"]] = figures
    return found


def median_time(figures: Figures, budget: int) -> float:
    return statistics.median(seconds for seconds, _ in figures[budget].values())


def at_equal_time(found: Mapping[str, Figures], seconds: float) -> dict[str, list[float]]:
    """Accuracies by row, of all seeds, after ``seconds``; rows whose shortest run takes longer are left out."""
    table: dict[str, list[float]] = {}
    for row, figures in found.items():
        times = {budget: median_time(figures, budget) for budget in figures}
        if min(times.values()) <= seconds:
            seeds = sorted(set.intersection(*(set(runs) for runs in figures.values())))
            lines = [sorted((times[budget], figures[budget][seed][1]) for budget in figures) for seed in seeds]
            table[row] = [reached(line, seconds) for line in lines]
    return {row: values for row, values in table.items() if values}


def reached(line: Sequence[tuple[float, float]], seconds: float) -> float:
    """The accuracy after ``seconds``, at least the shortest time, on the line through (time, accuracy) over the logarithm of time."""
    for (low, at_low), (high, at_high) in itertools.pairwise(line):
        if seconds < high:
            return at_low + (at_high - at_low) * math.log(seconds / low) / math.log(high / low)
    return line[-1][1]


def spread(values: Sequence[float], scale: float = 100.0) -> str:
    """Median, and in brackets the smallest and largest value."""
    low, middle, high = (scale * value for value in (min(values), statistics.median(values), max(values)))
    return f"{middle:.1f} ({low:.1f} to {high:.1f})" if len(values) > 1 else f"{middle:.1f}"


def verdict(values: Mapping[str, Sequence[float]]) -> str:
    """Who is ahead, as the part of a sentence."""
    if not values:
        return "no run is short enough"
    best = max(values, key=lambda row: statistics.median(values[row]))
    close = [f"`{row}`" for row in values if row != best and max(values[row]) >= min(values[best])]
    if close:
        return f"none is ahead: the range of `{best}`, {spread(values[best])} %, meets that of {', '.join(close)}"
    return f"`{best}` is ahead with {spread(values[best])} %"


def sentences(found: Mapping[str, Figures]) -> list[str]:
    """One sentence per budget: who is ahead in the time that the dense network takes for it."""
    lines = []
    for budget in found.get("dense", {}):
        seconds = median_time(found["dense"], budget)
        values = at_equal_time(found, seconds)
        alone = {row: accuracies for row, accuracies in values.items() if not ROWS[row].taught}
        text = f"- In the {seconds:.0f} s of {budget} dense steps, {verdict(alone)}"
        if len(alone) < len(values):
            taught, where = verdict(values), "where a trained dense network is there to learn from"
            text += f"; also {where}" if taught == verdict(alone) else f"; {where}, {taught}"
        lines.append(f"{text}.")
    return lines


def table(cells: Sequence[Cell], clock: str = "wall") -> list[str]:
    """Markdown: what was measured, what is reached in equal time, who is ahead, and the time of the teacher."""
    found = by_row(cells, clock)
    lines = ["| | budget | steps | MMACs | compact weights | training, s | accuracy, % |", "|" + " --- |" * 7]
    for (row, budget), one in {(cell["row"], cell["budget"]): cell for cell in cells}.items():
        times, accuracies = zip(*found[row][budget].values(), strict=True)
        compact = f"{one['compact']} of {one['masked']}" if one["masked"] else ""
        told = (ROWS[row].label, budget, one["steps"], f"{one['macs'] / 1e6:.1f}", compact, spread(times, 1.0))
        lines.append(f"| {' | '.join(map(str, (*told, spread(accuracies))))} |")
    if "dense" not in found:
        return lines
    columns = {budget: at_equal_time(found, median_time(found["dense"], budget)) for budget in found["dense"]}
    heads = [f"{median_time(found['dense'], budget):.0f} s" for budget in columns]
    lines += ["", f"| accuracy, %, after | {' | '.join(heads)} |", "|" + " --- |" * (1 + len(heads))]
    for row in found:
        shown = (spread(values[row]) if row in values else "" for values in columns.values())
        lines.append(f"| {ROWS[row].label} | {' | '.join(shown)} |")
    lines += ["", *sentences(found)]
    teachers = {cell["teacher"] for cell in cells if "teacher" in cell} & {*found["dense"]}
    for budget in sorted(teachers):
        times = [seconds for seconds, _ in found["dense"][budget].values()]
        lines += ["", f"Training the teacher takes {spread(times, 1.0)} s more, which are in no other figure."]
    return [*lines, "", conditions(cells, clock)]


def conditions(cells: Sequence[Cell], clock: str) -> str:
    """Where and how the figures were measured."""
    cell, clocks = cells[0], {"wall": "wall time", "cpu": "CPU time"}
    processors = " and ".join(sorted({one["machine"]["processor"] for one in cells}))
    at_once, seeds = max(one["jobs"] for one in cells), len({one["seed"] for one in cells})
    return (
        f"{processors}, {cell['machine']['cores']} cores; runs at a time: {at_once}, threads of each: {cell['threads']}; "
        f"PyTorch {cell['torch']}; {clocks[clock]}; batch {cell['batch']}, learning rate {cell['lr']}; seeds: {seeds}, median (range)."
    )


def plot(cells: Sequence[Cell], path: Path, clock: str = "wall") -> None:
    """Median accuracy against median time as SVG, with ranges over seeds; rows with a teacher are dashed."""
    found = by_row(cells, clock)
    names = list(dict.fromkeys(row.removeprefix("taught-") for row in ROWS))
    with canvas(4.5) as figure:
        axis = figure.subplots()
        for row, figures in found.items():
            times = [median_time(figures, budget) for budget in figures]
            accuracies = [[100 * value for _, value in runs.values()] for runs in figures.values()]
            colour = shade(names.index(row.removeprefix("taught-")) / len(names))
            style = "o--" if ROWS[row].taught else "o-"
            axis.plot(times, [*map(statistics.median, accuracies)], style, label=row, color=colour, markersize=4)
            axis.vlines(times, [*map(min, accuracies)], [*map(max, accuracies)], color=colour, linewidth=1)
        axis.set(xscale="log", xlabel=f"seconds of training, {clock} time", ylabel="test accuracy, %")
        axis.xaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")
        axis.legend(fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = svg(figure, f"Test accuracy against seconds of training of {', '.join(found)}.", "frontier")
        write_atomically(path, text.encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 1 when runs failed."""
    options = _arguments(arguments)
    shared, teacher = {name: getattr(options, name) for name in SHARED}, options.teacher or max(options.budgets)
    jobs = [
        {"row": row, "budget": budget, "seed": seed, **shared, **({"teacher": teacher} if ROWS[row].taught else {})}
        for seed in options.seeds
        for budget in sorted(options.budgets, reverse=True)
        for row in options.only
    ]
    failed = 0 if options.table else run_all(jobs, options)
    cells = [cell for cell in stored(options.json) if any(is_of(job, cell) for job in jobs)]
    if not cells:
        print(f"{options.json} holds no run of these options", file=sys.stderr)
        return 1
    print("\n".join(table(cells, options.clock)))
    plot(cells, options.plot or options.folder / "train_frontier.svg", options.clock)
    return 1 if failed else 0


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default=f"{ROOT.parent}/shared/data/cifar10_jpeg.npz", help="CIFAR-10 as .npz")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="rows to train")
    parser.add_argument("--budgets", nargs="+", type=int, default=[320, 640, 1280], help="steps of the dense network")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--teacher", type=int, help="budget of the teacher; the largest of --budgets unless given")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--threads", type=int, default=1, help="of a run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="of tables and plot; cpu on a shared machine")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "train_frontier.json")
    parser.add_argument("--folder", type=Path, default=Path("runs/train_frontier"), help="for teachers and the plot")
    parser.add_argument("--plot", type=Path, help="the SVG; train_frontier.svg in --folder unless given")
    parser.add_argument("--table", action="store_true", help="show what is stored, and train nothing")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
