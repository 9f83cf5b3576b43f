"""What a pattern costs in accuracy and calibration, and what it brings in latency, against unstructured RigL and narrower dense networks.

A row is a pattern, a method and its options, as text: ``"unstructured rigl"``, ``"grouped:32:learned gmp stop_at=0.5"``, or
``"dense width=0.5"``, the narrower network. A row of ``distilled(...)`` learns from the dense network of its seed, which is trained first.
Every row x sparsity x seed is one run of equal training budget: trained, calibrated on
held-out data, exported (form auto), measured on the whole test set. A finished run is one line of ``results.jsonl`` and is not done again;
one that was stopped goes on from its checkpoint. Runs share nothing and go in parallel processes. Latency is taken at the end, all files of
the lowest seed in turn in one process; a figure is the median over rounds of the ratio to the dense file of the same round.

The rival at equal latency is the line through the narrower dense networks of a seed: its accuracy at the time of a row's file. A second
line goes through those that learned from the dense network too.

python benchmarks/pattern_quality.py --data cifar10.npz --images 10000 --epochs 6 --seeds 0 1 2 --processes 2
python benchmarks/pattern_quality.py --data cifar10.npz --images 10000 --epochs 6 --rows "grouped:32 gmp" "grouped:32:learned gmp"
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import math
import multiprocessing
import statistics
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import sparsify as sp
from sparsify.calibration import evaluate, fit
from sparsify.figures.classifier import quality
from sparsify.figures.intervals import Difference, paired_difference
from sparsify.files import write_atomically
from sparsify.loading import load_data
from sparsify.loading.augmentation import augmented
from sparsify.methods import Method
from sparsify.parts.samples import Subset
from sparsify.passes import AttachCalibrationHead, Pipeline
from sparsify.reports import compare
from sparsify.reports.digits import three_digits
from sparsify.reports.latency import machine
from sparsify.runs.comparison import end_with_parent
from sparsify.training import Settings, train

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from cifar import wide_resnet

BASELINE = "unstructured rigl"
TEACHER = "dense width=1.0"
"""The dense network itself: what others are timed against and learn from."""
WIDTHS = (0.25, 0.375, 0.5, 0.625, 0.75, 1.0)
"""Of the narrower dense networks; 1.0 is the dense network itself."""
VALIDATION = 2000
"""Held-out images, for the calibration head."""
RIVALS = {"vs dense of equal latency": "dense", "vs taught dense of equal latency": "distilled(dense)"}
"""Methods of the narrower dense networks that a row is set against."""
Table = dict[tuple[str, float], dict[str, Any]]
"""(row, sparsity) -> figures."""
CHOSEN = ("images", "epochs", "batch", "lr", "weight_decay")
"""Options of the command that make another run."""


def all_rows(sparsity: float) -> list[str]:
    """What the issue of patterns is about; N:M is the nearest of 16."""
    groups = [f"grouped:{o}{kind} gmp" for o in (8, 16, 32, 64) for kind in ("", ":learned")]
    fixed = [f"nm:{max(1, round(16 * (1 - sparsity)))}:16 rigl keep_dense=stem.weight", "block:4x1 rigl"]
    taught = [
        "grouped:32 distilled(gmp) stop_at=0.5",
        *(f"dense distilled(dense) width={width}" for width in (0.375, 0.5)),
    ]
    return [BASELINE, "unstructured gmp", *fixed, *groups, *taught, *(f"dense width={width}" for width in WIDTHS)]


def parsed(row: str) -> tuple[str, str, dict[str, str]]:
    """(pattern or ``dense``, method, options)."""
    pattern, *rest = row.split()
    names, pairs = [t for t in rest if "=" not in t], [t.partition("=") for t in rest if "=" in t]
    return pattern, names[0] if names else "dense", {key: value for key, _, value in pairs}


def number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def method_of(row: str, sparsity: float) -> Method:
    pattern, name, options = parsed(row)
    if pattern == "dense":
        return sp.methods.build(name, {})
    given: dict[str, Any] = {key: number(value) for key, value in options.items()}
    given["keep_dense"] = ("head.weight", *filter(None, options.get("keep_dense", "").split(",")))
    density = round(1 - sparsity, 6)
    if pattern.startswith("nm:"):
        _, n, m = pattern.split(":")
        density = int(n) / int(m)
    return sp.methods.build(name, {"density": density, "pattern": pattern, "update_every": 50, **given})


def key_of(job: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(job), sort_keys=True).encode()).hexdigest()[:16]


def taught_by(job: Mapping[str, Any]) -> dict[str, Any]:
    """The job whose network is the teacher of another's."""
    return {**job, "row": TEACHER, "sparsity": 0.0}


def run(job: dict[str, Any], data_path: str, folder: str, threads: int) -> dict[str, Any]:
    """One run: a line of the results."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    began, seed = time.time(), job["seed"]
    data = load_data(data_path, seed=0)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(data.train), generator=generator)[: job["images"]]
    held = Subset(data.validation, torch.arange(min(VALIDATION, len(data.validation))))
    options = parsed(job["row"])[2]
    torch.manual_seed(seed)
    program = sp.trace(wide_resnet(float(options.get("width", 1.0))), (data.example(),))
    settings = Settings(
        epochs=job["epochs"], batch_size=job["batch"], lr=job["lr"], weight_decay=job["weight_decay"], warmup=50,
        device="cpu", seed=seed,
    )  # fmt: skip
    place = Path(folder) / "runs" / key_of(job)
    method = method_of(job["row"], job["sparsity"])
    teacher = None
    if method.distillation:
        teacher = sp.Program.load(Path(folder) / "runs" / key_of(taught_by(job)) / "program.sparsify")
    trained = train(
        method,
        program,
        augmented(Subset(data.train, rows), "crop-flip"),
        held,
        settings,
        folder=place,
        key=key_of(job),
        teacher=teacher,
        resume=True,
    )
    if job["row"] == TEACHER:
        program.save(place / "program.sparsify")
    Pipeline((AttachCalibrationHead(),)).apply(program)
    fit(program, held)
    outputs = evaluate(program, data.test)
    found = quality(outputs["logits"].softmax(1), outputs["probabilities"], data.test.targets)
    form = "auto" if program.masks() else "dense"
    result = sp.export(program, place / "model.onnx", inputs=[data.example(8)], form=form)
    (place / "checkpoint.pt").unlink(missing_ok=True)
    costs = program.costs()
    return {
        "key": key_of(job), **job, "density": costs.density, "macs": costs.macs_active, "bytes": result.bytes,
        **{name: found[name] for name in ("accuracy", "ece_before", "ece_after", "nll_before", "nll_after")},
        "forms": dict(result.forms), "parity": result.parity.largest_error, "rounds": trained.counts["rounds"],
        "seconds": time.time() - began,
    }  # fmt: skip


def finished(folder: Path) -> list[dict[str, Any]]:
    path = folder / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def train_all(jobs: Sequence[dict[str, Any]], options: argparse.Namespace) -> int:
    """The jobs that no line tells of, seeds outermost, so that early lines are of all rows; how many failed."""
    done = {line["key"] for line in finished(options.folder)}
    left = [job for job in jobs if key_of(job) not in done]
    print(f"{len(jobs) - len(left)} runs are there, {len(left)} to do", flush=True)
    teachers = [job for job in left if job["row"] == TEACHER]
    return sum(_train(part, options) for part in (teachers, [job for job in left if job not in teachers]) if part)


def _train(left: Sequence[dict[str, Any]], options: argparse.Namespace) -> int:
    """Train in parallel; how many failed."""
    failed = 0
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.processes, spawn, end_with_parent) as pool:
        running = {pool.submit(run, job, options.data, str(options.folder), options.threads): job for job in left}
        for future in concurrent.futures.as_completed(running):
            job = running[future]
            try:
                line = future.result()
            except Exception as error:  # a run that fails costs the others nothing
                print(f"{job['row']} at {job['sparsity']:.0%}: {type(error).__name__}: {error}", flush=True)
                failed += 1
                continue
            with (options.folder / "results.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(
                f"{line['row']:44} {line['sparsity']:.0%} seed {line['seed']} {line['accuracy']:.4f} {line['seconds']:.0f} s",
                flush=True,
            )
    return failed


def summed(lines: Sequence[dict[str, Any]]) -> Table:
    """(row, sparsity) -> means and standard deviations over seeds."""
    table: Table = {}
    for place, group in itertools.groupby(sorted(lines, key=_place), key=_place):
        runs = list(group)
        figures: dict[str, Any] = {"seeds": len(runs), "density": runs[0]["density"], "macs": runs[0]["macs"]}
        figures["key"] = min(runs, key=lambda line: line["seed"])["key"]
        for name in ("accuracy", "ece_before", "ece_after"):
            values = [line[name] for line in runs]
            figures[name] = statistics.mean(values)
            figures[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else math.nan
        figures["by_seed"] = {line["seed"]: line["accuracy"] for line in runs}
        table[place] = figures
    return table


def _place(line: Mapping[str, Any]) -> tuple[str, float]:
    return line["row"], line["sparsity"]


def timed(table: Table, options: argparse.Namespace) -> None:
    """Add the latency of every row's file."""
    places = sorted(table, key=lambda place: place[0] != TEACHER)
    names = {f"{row} {sparsity}": (row, sparsity) for row, sparsity in places}
    files = {name: options.folder / "runs" / table[place]["key"] / "model.onnx" for name, place in names.items()}
    files = {name: path for name, path in files.items() if path.exists()}
    result = compare(files, batch=1, threads=1, rounds=options.rounds)
    for timing in result.timings:
        table[names[timing.name]] |= {
            "milliseconds": timing.milliseconds, "times_as_fast": timing.speedup, "interval": timing.interval
        }  # fmt: skip
    print(result.conditions())


def is_rival(row: str, method: str = "dense") -> bool:
    """A narrower dense network, trained by that method."""
    return parsed(row)[:2] == ("dense", method)


def rival(table: Table, milliseconds: float, seed: int, method: str) -> float | None:
    """Accuracy of the narrower dense network of that latency and seed, on the line between the two nearest."""
    line = sorted(
        (f["milliseconds"], f["by_seed"][seed])
        for (row, _), f in table.items()
        if is_rival(row, method) and "milliseconds" in f and seed in f["by_seed"]
    )
    for (low, at_low), (high, at_high) in itertools.pairwise(line):
        if low <= milliseconds <= high:
            return at_low + (at_high - at_low) * (milliseconds - low) / (high - low)
    return None


def differences(table: Table, row: str, sparsity: float) -> dict[str, Difference | None]:
    """What a row's accuracy is above others', seed by seed; None where there is nothing to compare with."""
    figures = table[row, sparsity]
    own: Mapping[int, float] = figures["by_seed"]
    base = {} if row == BASELINE else table.get((BASELINE, sparsity), {}).get("by_seed", {})
    others = {"vs RigL": dict(base)}
    for name, method in RIVALS.items():
        compared = "milliseconds" in figures and parsed(row)[0] != "dense"
        lines = {seed: rival(table, figures["milliseconds"], seed, method) for seed in own} if compared else {}
        others[name] = {seed: value for seed, value in lines.items() if value is not None}
    found: dict[str, Difference | None] = {}
    for name, other in others.items():
        seeds = sorted({*own} & {*other})
        found[name] = paired_difference([own[s] for s in seeds], [other[s] for s in seeds]) if seeds else None
    return found


def points(difference: Difference | None) -> str:
    """A difference of accuracies in points, with its 95 % interval; ``*`` where that leaves 0 out."""
    if difference is None:
        return ""
    limits = (
        "" if difference.interval is None else " [{:+.2f}, {:+.2f}]".format(*(100 * x for x in difference.interval))
    )
    return f"{100 * difference.mean:+.2f}{limits}{' *' if difference.clear else ''}"


def report(table: Table) -> list[str]:
    """A Markdown table; differences are in points of accuracy, paired by seed, with Student's 95 % interval."""
    heads = (
        "row", "sparsity", "seeds", "accuracy", "ECE", "ECE calibrated", "density", "MMACs", "ms", "times as fast", "vs RigL", *RIVALS
    )  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for (row, sparsity), f in sorted(table.items(), key=lambda item: (item[0][1], -item[1]["accuracy"])):
        found = differences(table, row, sparsity)
        f["differences"] = {name: None if one is None else dataclasses.asdict(one) for name, one in found.items()}
        cells = (
            row, f"{sparsity:.0%}" if sparsity else "", str(f["seeds"]),
            f"{100 * f['accuracy']:.2f} ± {100 * f['accuracy_sd']:.2f}", f"{f['ece_before']:.4f}", f"{f['ece_after']:.4f}",
            f"{f['density']:.4f}", f"{f['macs'] / 1e6:.1f}", three_digits(f["milliseconds"]) if "milliseconds" in f else "nan",
            f"{f.get('times_as_fast', math.nan):.2f}", *map(points, found.values()),
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def plot(table: Table, path: Path) -> None:
    """Accuracy against measured latency; the line joins the narrower dense networks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(9, 5.5))
    shown = {place: f for place, f in table.items() if "milliseconds" in f}
    line = sorted((f["milliseconds"], 100 * f["accuracy"]) for (row, _), f in shown.items() if is_rival(row))
    axis.plot([x for x, _ in line], [y for _, y in line], color="black", linewidth=0.8, zorder=0)
    for (row, sparsity), f in shown.items():
        error = 0 if math.isnan(f["accuracy_sd"]) else 100 * f["accuracy_sd"]
        label = row if row.startswith("dense") else f"{row}, {sparsity:.0%}"
        color = {"dense": "black", "grouped": None}.get(row.split(":")[0].split()[0], "grey")
        axis.errorbar(f["milliseconds"], 100 * f["accuracy"], yerr=error, fmt="o", markersize=4, color=color)
        axis.annotate(
            label, (f["milliseconds"], 100 * f["accuracy"]), xytext=(4, 3), textcoords="offset points", fontsize=6
        )
    axis.set_xscale("log")
    axis.set_xlabel("milliseconds an image, ONNX Runtime, batch 1, one thread")
    axis.set_ylabel("test accuracy, %")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 as .npz")
    parser.add_argument("--images", type=int, default=10_000, help="of the training part")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.9])
    parser.add_argument("--rows", nargs="+", help="text of rows; all of them by default")
    parser.add_argument("--folder", type=Path, default=Path("runs/pattern_quality"))
    parser.add_argument("--processes", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="of a process")
    parser.add_argument("--rounds", type=int, default=40, help="of the latency")
    parser.add_argument("--no-training", action="store_true", help="report what is there")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    jobs: dict[str, dict[str, Any]] = {}
    for seed, sparsity in itertools.product(options.seeds, options.sparsity):
        for row in options.rows or all_rows(sparsity):
            chosen = {name: getattr(options, name) for name in CHOSEN}
            share = 0.0 if row.startswith("dense") else sparsity
            job = {"row": row, "sparsity": share, "seed": seed, **chosen}
            needed = [taught_by(job)] if "distilled(" in row else []
            jobs |= {key_of(one): one for one in (*needed, job)}
    failed = 0 if options.no_training else train_all(list(jobs.values()), options)
    wanted = [line for line in finished(options.folder) if options.no_training or line["key"] in jobs]
    if not wanted:
        sys.exit("no run is finished")
    if any(line[name] != wanted[0][name] for line in wanted for name in CHOSEN):
        sys.exit(
            f"the folder holds runs of other budgets ({', '.join(CHOSEN)}); give their options, without --no-training"
        )
    table = summed(wanted)
    timed(table, options)
    print("\n".join(report(table)))
    rows = [{"row": row, "sparsity": sparsity, **figures} for (row, sparsity), figures in table.items()]
    rows = [{key: None if value != value else value for key, value in row.items()} for row in rows]  # NaN is no JSON
    content = {"machine": dict(machine()), **{name: wanted[0][name] for name in CHOSEN}, "rows": rows}
    write_atomically(options.folder / "pattern_quality.json", (json.dumps(content, indent=1) + "\n").encode())
    plot(table, options.folder / "pattern_quality.png")
    if failed:
        sys.exit(f"{failed} runs failed and are not in the table; the same command tries them again")


if __name__ == "__main__":
    main()
