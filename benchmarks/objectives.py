"""Losses that calibrate while training, and MOON: what they change beside cross-entropy in the same runs.

The first part trains a small network to the end on 5000 images of CIFAR-10, so that it is over-confident: each objective, dense and at
90 % sparsity (rigl, and gmp with groups of 32 outputs). The second trains rigl at 90 %, alone, with averaged weights and with moon, where
networks still err on their training samples: augmented images, images of which 20 % have a wrong label, and spoken digits, of which 8 and
9 are held out as unknown inputs. Temperatures are fitted on held-out samples. Differences are those to the first row of the same network
and seed, with Student's 95 % intervals over seeds.

Each training is a cell, and a finished cell is a file in --folder that is not computed again, so that a benchmark that was stopped goes on
with the same command.

python benchmarks/objectives.py --jobs 2                     # all cells
python benchmarks/objectives.py --part objectives --only ce focal --nets rigl --seeds 0
python benchmarks/objectives.py --table                      # the tables of what is stored
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import sparsify as sp
from sparsify.calibration import evaluate
from sparsify.figures import metrics, selective
from sparsify.figures.classifier import quality
from sparsify.figures.intervals import paired_difference
from sparsify.figures.ood_scores import scores
from sparsify.figures.selection_scores import chosen
from sparsify.files import write_atomically
from sparsify.loading import load_data
from sparsify.loading.augmentation import augmented
from sparsify.loading.ood import load_ood
from sparsify.methods import Method
from sparsify.parts.calibrators import NotIdentifiableError, fit_temperature
from sparsify.parts.samples import Batch, Samples, Subset, TensorSamples
from sparsify.reports.latency import machine
from sparsify.runs.apart import end_with_parent
from sparsify.training import Settings, train

ROOT = Path(__file__).parents[1]
Cell = dict[str, Any]
FIGURES = (
    "accuracy", "nll_before", "nll_after", "ece_before", "ece_after", "signed_gap_before", "aurc_after", "correctness_auroc_after",
)  # fmt: skip
"""Figures of `sparsify.figures.classifier.quality` that a cell holds."""


@dataclass(frozen=True)
class Row:
    """An objective: its label in tables, the wrapper (None: none), and its options."""

    label: str
    wrapper: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


OBJECTIVES = {
    "ce": Row("cross-entropy"),
    "label-smoothing": Row("label smoothing, 0.05", "label-smoothing"),
    "maxsup": Row("MaxSup", "maxsup"),
    "focal": Row("focal, gamma 3", "focal"),
    "flsd": Row("focal, FLSD-53", "focal", {"hard_gamma": 5.0}),
    "dual-focal": Row("dual focal, gamma 5", "dual-focal"),
    "mbls": Row("MbLS, margin 6", "mbls", {"margin": 6.0}),
    "acls": Row("ACLS, margin 6", "acls", {"margin": 6.0}),
    "mmce": Row("MMCE, weighted", "mmce", {"weighted": True}),
    "logit-norm": Row("LogitNorm", "logit-norm"),
    "mixup": Row("mixup", "mixup"),
    "rankmixup-margin": Row("RankMixup, margin", "rankmixup", {"form": "margin"}),
    "rankmixup-ndcg": Row("RankMixup, NDCG", "rankmixup"),
    "ps-kd": Row("PS-KD", "ps-kd"),
}
UNKNOWN = {"plain": Row("cross-entropy"), "averaged": Row("averaged weights", "averaged"), "moon": Row("MOON", "moon")}
SPARSE = {"density": 0.1, "keep_dense": ("0.weight", "12.weight")}
NETS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "dense": ("dense", {}),
    "rigl": ("rigl, 90 %", SPARSE),
    "gmp": ("gmp, grouped:32, 90 %", {**SPARSE, "pattern": "grouped:32"}),
}
"""By method: its label in tables, and its options."""


@dataclass(frozen=True)
class Parts:
    """Training samples, held-out samples for temperatures, test samples, and inputs of none of the classes."""

    train: Samples
    held_out: Samples
    test: Samples
    unknown: Samples


@dataclass(frozen=True)
class Task:
    """What is learned: its samples, the shape of the network, and how it is trained."""

    label: str
    load: Callable[[argparse.Namespace, int], Parts]
    shape: tuple[int, int, int]
    epochs: int
    schedule: str = "cosine"


def pictures(colours: int, places: int, classes: int) -> nn.Module:
    """Three convolutions of 32, 64 and 128 channels that halve the picture, to 128 values at so many places, and two linear layers."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((colours, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * places, 256), nn.ReLU(), nn.Linear(256, classes))


class Relabelled:
    """Samples of which a share has another class than its own, chosen at random by the seed."""

    def __init__(self, base: Samples, share: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        wrong = torch.rand(len(base), generator=generator) < share
        other = (base.targets + torch.randint(1, 10, (len(base),), generator=generator)) % 10
        self._base, self.targets = base, torch.where(wrong, other, base.targets)

    def __len__(self) -> int:
        return len(self._base)

    def batch(self, rows: Tensor, *, seed: int = 0) -> Batch:
        return Batch(self._base.batch(rows, seed=seed).inputs, self.targets[rows])

    def fingerprint(self) -> str:
        return f"{self._base.fingerprint()} {self.targets.tolist()}"


@functools.cache
def images(folder: Path, samples: int) -> Parts:
    """Images of CIFAR-10, and those of Tiny-ImageNet as unknown inputs."""
    data = load_data(str(folder / "cifar10_jpeg.npz"), seed=0, holdout=0.1)
    chosen_rows = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:samples]
    unknown = load_ood(str(folder / "ood_tiny_imagenet.npz"), data)
    return Parts(Subset(data.train, chosen_rows), data.validation, data.test, unknown)


def varied(options: argparse.Namespace, seed: int, wrong: float = 0.0) -> Parts:
    """The images, shifted and flipped when they are fetched, some of them with wrong labels."""
    parts = images(options.data, options.samples)
    return Parts(
        augmented(Relabelled(parts.train, wrong, seed), "crop-flip"), parts.held_out, parts.test, parts.unknown
    )


@functools.cache
def spoken(folder: Path) -> Parts:
    """Spoken digits 0 to 7 as log-mel pictures; 8 and 9 of either part are unknown."""
    with np.load(folder / "spoken_digits_logmel.npz", allow_pickle=False) as held:
        x, y = {}, {}
        for part in ("train", "test"):
            x[part] = torch.from_numpy(held[f"x_{part}"])[:, None].float() / 127.5 - 1
            y[part] = torch.from_numpy(held[f"y_{part}"].astype(np.int64))
    known = {part: TensorSamples(x[part][y[part] < 8], y[part][y[part] < 8]) for part in x}
    unknown = torch.cat([x[part][y[part] >= 8] for part in x])
    order = torch.randperm(len(known["train"]), generator=torch.Generator().manual_seed(0))
    held_out = len(order) // 5
    return Parts(
        Subset(known["train"], order[held_out:]),
        Subset(known["train"], order[:held_out]),
        known["test"],
        TensorSamples(unknown, torch.zeros(len(unknown), dtype=torch.int64)),
    )


COLOUR, GREY = (3, 16, 10), (1, 32, 8)
TASKS = {
    "cifar10": Task("CIFAR-10", lambda options, seed: images(options.data, options.samples), COLOUR, 12),
    "augmented": Task("CIFAR-10, augmented", varied, COLOUR, 12, "cosine-tail"),
    "noisy": Task("CIFAR-10, 20 % of labels wrong", functools.partial(varied, wrong=0.2), COLOUR, 12, "cosine-tail"),
    "spoken": Task("spoken digits", lambda options, seed: spoken(options.data), GREY, 20, "cosine-tail"),
}
PARTS = {"objectives": (("cifar10",), OBJECTIVES), "moon": (("augmented", "noisy", "spoken"), UNKNOWN)}


def method_of(net: str, row: Row) -> Method:
    """Build the method of a cell."""
    text, given = f"{row.wrapper}({net})" if row.wrapper else net, NETS[net][1]
    return sp.methods.build(text, {**given, **({row.wrapper: row.options} if row.options and row.wrapper else {})})


def run(job: Mapping[str, Any], options: argparse.Namespace) -> Cell:
    """Train and measure one network.

    Returns:
        The job, and: figures of the test samples; AUROC against unknown inputs by score; temperature; accuracy on training samples; which
        norm `sparsify.figures.selection_scores` chose, and AURC by it; counts of passes; CPU seconds of training; the machine.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    task, row = TASKS[job["task"]], PARTS[job["part"]][1][job["row"]]
    parts = task.load(options, job["seed"])
    torch.manual_seed(job["seed"])
    program = sp.trace(pictures(*task.shape), (parts.test.batch(torch.arange(2)).inputs,))
    epochs = max(1, round(task.epochs * options.length))
    warmup = epochs * (len(parts.train) // 64) // 20
    given = {"epochs": epochs, "schedule": task.schedule, "warmup": warmup, "seed": job["seed"]}
    settings = Settings(**given, lr=0.05, checkpoint_every=2**31, device="cpu")
    watched = Subset(parts.held_out, torch.arange(min(256, len(parts.held_out))))
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        trained = train(
            method_of(job["net"], row), program, parts.train, watched, settings, folder=Path(folder), key=""
        )
    seconds = time.process_time() - began
    return {
        **job, **measured(program, parts), "train_accuracy": trained.history[-1]["accuracy"], "samples": len(parts.train),
        "epochs": epochs, **{key: trained.counts[key] for key in ("steps", "forwards", "backwards")},
        "cpu_seconds": round(seconds, 1), "machine": dict(machine()), "torch": torch.__version__,
    }  # fmt: skip


def measured(program: sp.Program, parts: Parts) -> Cell:
    """Measure a trained network on test samples and unknown inputs; temperature and norm come from held-out samples."""
    program.eval()
    held, test, unknown = (evaluate(program, samples) for samples in (parts.held_out, parts.test, parts.unknown))
    try:
        temperature = fit_temperature(held["logits"].double(), parts.held_out.targets)
    except NotIdentifiableError:  # all held-out samples are right, or the network knows nothing
        temperature = 1.0
    before, after = ((test["logits"].double() / t).softmax(1) for t in (1.0, temperature))
    figures = quality(before, after, parts.test.targets)
    choice = chosen((held["logits"].double() / temperature).softmax(1), held["logits"], parts.held_out.targets)
    confidence, (_, correct) = choice.confidence(after, test["logits"]), metrics.top_label(after, parts.test.targets)
    outside = scores(unknown)
    return {
        **{key: figures[key] for key in FIGURES}, "temperature": temperature, "norm": choice.p,
        "aurc_chosen": selective.aurc(selective.risk_coverage(confidence, correct)),
        "auroc": {name: metrics.auroc(values, outside[name]) for name, values in scores(test).items()},
    }  # fmt: skip


def file_of(job: Mapping[str, Any], folder: Path) -> Path:
    """The file of a finished cell."""
    return folder / f"{'_'.join(str(job[key]) for key in ('part', 'task', 'net', 'row', 'seed'))}.json"


def stored(jobs: Sequence[Cell], options: argparse.Namespace) -> list[Cell]:
    """The finished cells: those of the folder, and those of the JSON file that the folder does not have."""
    shown = json.loads(options.json.read_text())["cells"] if options.json.exists() else []
    cells: list[Cell] = []
    for job in jobs:
        path = file_of(job, options.folder)
        found = [json.loads(path.read_text())] if path.exists() else shown
        cells += [cell for cell in found if job.items() <= cell.items()][:1]
    return cells


def run_all(jobs: Sequence[Cell], options: argparse.Namespace) -> int:
    """Compute the cells that are missing, and write the file of each when it is done; returns how many failed."""
    options.folder.mkdir(parents=True, exist_ok=True)
    done = stored(jobs, options)
    left = [job for job in jobs if not any(job.items() <= cell.items() for cell in done)]
    print(f"{len(jobs) - len(left)} cells are stored, {len(left)} are left", flush=True)
    if options.jobs == 1:
        for job in left:
            keep(run(job, options), options.folder)
        return 0
    failed, spawn = 0, multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.jobs, spawn, end_with_parent) as pool:
        running = {pool.submit(run, job, options): job for job in left}
        for future in concurrent.futures.as_completed(running):
            if error := future.exception():  # a cell that fails costs the others nothing
                name = file_of(running[future], Path()).stem
                print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                failed += 1
            else:
                keep(future.result(), options.folder)
    return failed


def keep(cell: Cell, folder: Path) -> None:
    """Write the file of a finished cell."""
    write_atomically(file_of(cell, folder), json.dumps(cell).encode())
    told = f"accuracy {cell['accuracy']:.3f}, ECE {cell['ece_before']:.3f}, {cell['cpu_seconds']:.0f} s of CPU"
    print(f"{file_of(cell, Path()).stem}: {told}", flush=True)


COLUMNS: dict[str, tuple[str, Callable[[Cell], float | None], float]] = {
    "accuracy": ("accuracy, %", lambda cell: cell["accuracy"], 100),
    "nll": ("NLL", lambda cell: cell["nll_before"], 1),
    "nll after": ("NLL, T", lambda cell: cell["nll_after"], 1),
    "ece": ("ECE, %", lambda cell: cell["ece_before"], 100),
    "ece after": ("ECE, T, %", lambda cell: cell["ece_after"], 100),
    "aurc": ("AURC, %", lambda cell: cell["aurc_after"], 100),
    "aurc chosen": ("AURC, chosen, %", lambda cell: cell["aurc_chosen"], 100),
    "correctness": ("AUROC of correctness", lambda cell: cell["correctness_auroc_after"], 1),
    "unknown": ("AUROC, unknown", lambda cell: cell["auroc"]["maximum probability"], 1),
}
"""Heading, figure of a cell, and factor of each column. T: after temperature scaling; chosen: by the confidence held-out samples chose."""


def table(part: str, cells: Sequence[Cell]) -> list[str]:
    """Markdown: means over seeds, and in the rows below the first the difference to it with its interval."""
    lines, rows = [], PARTS[part][1]
    for task in PARTS[part][0]:
        for net in NETS:
            by_row = {
                row: {
                    c["seed"]: c for c in cells if (c["part"], c["task"], c["net"], c["row"]) == (part, task, net, row)
                }
                for row in rows
            }
            if any(by_row.values()):
                lines += [f"{TASKS[task].label}, {NETS[net][0]}", "", *_rows(rows, by_row), ""]
    return lines


def _rows(rows: Mapping[str, Row], by_row: Mapping[str, Mapping[int, Cell]]) -> list[str]:
    heads = [*(title for title, _, _ in COLUMNS.values()), "passes", "CPU s"]
    lines, base = [f"| | {' | '.join(heads)} |", "|" + " --- |" * (1 + len(heads))], by_row[next(iter(rows))]
    for row, found in by_row.items():
        if not found:
            continue
        shown = [_figure(found, base, figure, scale) for _, figure, scale in COLUMNS.values()]
        one = next(iter(found.values()))
        seconds = statistics.median(cell["cpu_seconds"] for cell in found.values())
        shown += [f"{one['forwards'] / one['steps']:.1f} + {one['backwards'] / one['steps']:.1f}", f"{seconds:.0f}"]
        lines.append(f"| {rows[row].label} | {' | '.join(shown)} |")
    return lines


def _figure(
    found: Mapping[int, Cell], base: Mapping[int, Cell], figure: Callable[[Cell], float | None], scale: float
) -> str:
    """The mean over seeds; and the difference to the first row, in bold if its interval leaves out 0."""
    ours, theirs = (
        {seed: scale * value for seed, cell in cells.items() if (value := figure(cell)) is not None}
        for cells in (found, base)
    )
    digits, seeds = 1 if scale > 1 else 3, sorted(ours.keys() & theirs.keys())
    text = f"{statistics.mean(ours.values()):.{digits}f}" if ours else ""
    if found is base or not seeds:
        return text
    difference = paired_difference([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    reach = "" if difference.interval is None else f" ± {difference.interval[1] - difference.mean:.{digits}f}"
    mark = "**" if difference.clear else ""
    return f"{text} ({mark}{difference.mean:+.{digits}f}{reach}{mark})"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 1 when cells failed or none is stored."""
    options = _arguments(arguments)
    jobs: list[Cell] = [
        {"part": part, "task": task, "net": net, "row": row, "seed": seed, "images": options.samples, "length": options.length}
        for part in options.part
        for seed in options.seeds
        for task in PARTS[part][0]
        for net in (options.nets if part == "objectives" else ["rigl"])
        for row in PARTS[part][1]
        if not options.only or row in options.only
    ]  # fmt: skip
    failed = 0 if options.table else run_all(jobs, options)
    cells = stored(jobs, options)
    if not cells:
        print("no such cell is stored", file=sys.stderr)
        return 1
    if not options.table:
        lines = ",\n ".join(map(json.dumps, cells))
        write_atomically(options.json, f'{{"cells": [\n {lines}\n]}}\n'.encode())
    print("\n".join(line for part in options.part for line in table(part, cells)))
    return 1 if failed else 0


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the .npz files")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--only", nargs="+", choices=[*OBJECTIVES, *UNKNOWN], help="rows")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS), help="networks of the first part")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=5_000, help="training images of CIFAR-10")
    parser.add_argument("--length", type=float, default=1.0, help="factor of the epochs of every task")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--folder", type=Path, default=Path("runs/objectives"), help="for the files of cells")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "objectives.json")
    parser.add_argument("--table", action="store_true", help="show what is stored, and train nothing")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
