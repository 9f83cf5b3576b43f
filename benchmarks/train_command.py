"""What compact training is worth in the command: time of training and test accuracy of `sparsify run`, beside an earlier version.

Every cell is a process of its own that runs the command; its training is timed from the inside, with all that belongs to it: batches,
rounds, the validation part after each epoch, checkpoints. Versions run side by side, one on each core, and CPU time is compared, so that
both have the same conditions. Without `--before`, the other version is this one with `train.compact=never`. A finished cell is a line of
the JSON file and is not run again.

git worktree add ../before 7ffbcd5                    # the last version that trained all weights dense
python benchmarks/train_command.py --data cifar10.npz --before ../before
python benchmarks/train_command.py --show             # prints the table of what is stored
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsify.figures.intervals import paired_difference
from sparsify.files import write_atomically
from sparsify.reports.latency import machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "train_command.json"
MODEL = ROOT / "examples" / "cifar.py"
CHILD = """
import json, sys, time
import sparsify.runs.workflow as workflow
from sparsify.cli import main

train, (times, *words) = workflow.train, sys.argv[1:]

def timed(*arguments, **options):
    wall, cpu = time.perf_counter(), time.process_time()
    result = train(*arguments, **options)
    figures = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    with open(times, "w") as file:
        json.dump(figures, file)
    return result

workflow.train, sys.argv = timed, ["sparsify", *words]
sys.exit(main())
"""
Cell = dict[str, Any]


def begin(checkout: Path, job: Mapping[str, Any], data: str, out: Path) -> subprocess.Popen[str]:
    """Start the command of a cell, in the version that ``checkout`` holds."""
    values = {
        "data": Path(data).resolve(), "pattern": job["pattern"], "sparsity": job["sparsity"], "method": job["method"],
        "epochs": job["epochs"], "out": out / "run",
    }  # fmt: skip
    words = ["run", f"{MODEL}:wide_resnet"]
    words += [word for name, value in values.items() for word in (f"--{name}", str(value))]
    words += ["--set", f"train.seed={job['seed']}", "--set", "train.threads=1"]
    if job["version"] == "masked":
        words += ["--set", "train.compact=never"]
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, str(out / "times.json"), *words]
    return subprocess.Popen(
        command, env=environment, cwd=out, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def measured(jobs: Sequence[Cell], options: argparse.Namespace, folder: Path) -> list[Cell]:
    """Run cells side by side.

    Raises:
        RuntimeError: If a command failed, with its output.
    """
    started = []
    for place, job in enumerate(jobs):
        out = folder / str(place)
        out.mkdir()
        checkout = options.before if job["version"] == "before" else ROOT
        started.append((job, out, begin(checkout, job, options.data, out)))
    cells = []
    for job, out, process in started:
        text, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{job} ended with exit code {process.returncode}:\n{text[-2000:]}")
        report = json.loads((out / "run" / "metrics.json").read_text())
        times = json.loads((out / "times.json").read_text())
        accuracy = report["model"]["accuracy"]
        cells.append({**job, **times, "accuracy": accuracy, "jobs": len(jobs), "machine": dict(machine())})
    return cells


def table(cells: Sequence[Cell]) -> list[str]:
    """Markdown: a line per method and version, with the ratio of times and the difference of accuracies, paired by seed."""
    lines = [
        "| method | version | training, s of CPU time | beside the other version | accuracy, % | difference, points |",
        "|" + " --- |" * 6,
    ]
    kinds = list(dict.fromkeys((cell["method"], cell["version"]) for cell in cells))
    by_seed = {kind: {c["seed"]: c for c in cells if (c["method"], c["version"]) == kind} for kind in kinds}
    for method, version in kinds:
        runs = by_seed[method, version]
        times, accuracies = ([run[name] for run in runs.values()] for name in ("cpu_seconds", "accuracy"))
        figures = [spread(times, 0), "", spread([100 * accuracy for accuracy in accuracies], 1), ""]
        base = next((by_seed[kind] for kind in kinds if kind[0] == method and kind[1] != "compact"), None)
        if version == "compact" and base:
            seeds = sorted(runs.keys() & base.keys())
            figures[1] = spread([runs[seed]["cpu_seconds"] / base[seed]["cpu_seconds"] for seed in seeds], 2)
            found = paired_difference(
                [100 * runs[seed]["accuracy"] for seed in seeds], [100 * base[seed]["accuracy"] for seed in seeds]
            )
            reach = "" if found.interval is None else f" ({found.interval[0]:+.1f} to {found.interval[1]:+.1f})"
            figures[3] = f"{found.mean:+.1f}{reach}"
        lines.append(f"| `{method}` | {version} | {' | '.join(figures)} |")
    first = cells[0]
    processors = " and ".join(sorted({cell["machine"]["processor"] for cell in cells}))
    seeds, epochs = len({cell["seed"] for cell in cells}), f"{first['epochs']} epoch{'s' * (first['epochs'] != 1)}"
    told = (
        f"CIFAR-10 with {epochs}, {first['pattern']}, {100 * first['sparsity']:g} %; {processors}, {first['jobs']} commands "
        f"at a time, one thread each. Medians and ranges over {seeds} seeds; of the difference, mean and 95 % interval."
    )
    return [*lines, "", told]


def spread(values: Sequence[float], digits: int) -> str:
    """Median, and in brackets the smallest and largest value."""
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="CIFAR-10 as .npz")
    parser.add_argument("--before", type=Path, help="checkout of an earlier version")
    parser.add_argument("--methods", nargs="+", default=["rigl", "gmp"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--pattern", default="grouped:32")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--show", action="store_true", help="print the table, and run nothing")
    return parser.parse_args()


def main() -> None:
    options = parse()
    cells: list[Cell] = json.loads(options.json.read_text())["cells"] if options.json.exists() else []
    shared = {name: getattr(options, name) for name in ("epochs", "pattern", "sparsity")}
    versions = ("before" if options.before else "masked", "compact")
    for method in [] if options.show else options.methods:
        for seed in options.seeds:
            jobs = [{"method": method, "version": version, "seed": seed, **shared} for version in versions]
            if all(any(job.items() <= cell.items() for cell in cells) for job in jobs):
                continue
            with tempfile.TemporaryDirectory() as folder:
                done = measured(jobs, options, Path(folder))
            cells += done
            options.json.parent.mkdir(parents=True, exist_ok=True)
            lines = ",\n ".join(json.dumps(cell) for cell in cells)
            write_atomically(options.json, f'{{"cells": [\n {lines}\n]}}\n'.encode())
            for cell in done:
                told = f"{cell['seconds']:.1f} s, {100 * cell['accuracy']:.2f} %"
                print(f"{method} {cell['version']} seed {seed}: {told}", flush=True)
    print("\n".join(table(cells)))


if __name__ == "__main__":
    main()
