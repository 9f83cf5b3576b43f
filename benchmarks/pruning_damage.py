"""What pruning breaks on imbalanced data: Fashion-MNIST with three rare classes, dense and 95 % sparse with and without protecting losses.

The rare classes have 1/20 or 1/100 of the training samples of the others. A dense network is trained for each seed; every other row starts
from the same initial weights, takes as many steps over the same batches, and is compared with it on the 10,000 test samples. The wrapper
`balancing-act` is given the recalls of the dense network on the training samples. The row "dense, another seed" compares dense networks
with each other: what it shows is chance. A finished cell is kept in the JSON file and is not done again, so a stopped benchmark goes on.

python benchmarks/pruning_damage.py --data fashion_mnist.npz           # all cells, each less than a minute on one core
python benchmarks/pruning_damage.py --data fashion_mnist.npz --ratios 20 --rows dense gmp --seeds 0
python benchmarks/pruning_damage.py --show                             # only prints the tables
"""

from __future__ import annotations

import argparse
import json
import runpy
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import sparsify as sp
from sparsify.calibration import evaluate
from sparsify.errors import TrainingError
from sparsify.figures import metrics
from sparsify.figures.damage import damage
from sparsify.figures.exemplars import exemplars
from sparsify.figures.intervals import paired_difference
from sparsify.files import write_atomically
from sparsify.methods import Method
from sparsify.parts.samples import TensorSamples
from sparsify.training.settings import Settings

ROOT = Path(__file__).parents[1]
LOOP = runpy.run_path(str(ROOT / "benchmarks" / "loop.py"))
DENSE, BASE, CHANCE = "dense", "gmp", "chance"
CLASSES, RARE, USUAL = 10, (2, 5, 8), 1500
"""Number of classes; those that are rare: pullover, sandal, bag; training samples of each other class."""
RATIOS = (20, 100)
"""How many times as many training samples a usual class has as a rare one."""
EPOCHS, BATCH, LR = 10, 32, 0.05
DENSITY = 0.05
RECALL = {"constraint": "recall", "classes": list(RARE)}
WRAPPED: dict[str, tuple[str, dict[str, Any]]] = {
    BASE: ("gmp", {}),
    "balancing-act": ("balancing-act(gmp)", {}),
    "balancing-act, faster": ("balancing-act(gmp)", {"dual_rate": 0.1}),
    "balancing-act, faster, as published": ("balancing-act(gmp)", {"dual_rate": 0.1, "bounded": False}),
    "recall of rare classes": ("balancing-act(gmp)", RECALL),
    "class-weighted": ("class-weighted(gmp)", {}),
}
"""The sparse rows: their methods, and options of the wrapper that are not the defaults."""
ROWS = (DENSE, *WRAPPED)
NAMES = {
    DENSE: "dense",
    CHANCE: "dense, another seed",
    BASE: "`gmp`",
    "balancing-act": "`balancing-act(gmp)`",
    "balancing-act, faster": "the same with `dual_rate = 0.1`",
    "balancing-act, faster, as published": "the same with `dual_rate = 0.1` and `bounded = false`",
    "recall of rare classes": "the same with `constraint = recall` on the rare classes",
    "class-weighted": "`class-weighted(gmp)`",
}
FIGURES = {
    "accuracy": "accuracy",
    "rare": "recall of rare classes",
    "max_excess_gap": "largest excess gap",
    "worst_change": "worst change of a recall",
    "churn": "churn",
}
"""What the tables show, all in percent."""
Cell = dict[str, Any]


def main() -> int:
    """The exit code: 0."""
    options = _arguments()
    torch.set_num_threads(1)
    cells: list[Cell] = json.loads(options.json.read_text())["cells"] if options.json.exists() else []
    if not options.show:
        for ratio in options.ratios:
            train, test = imbalanced(options.data, ratio)
            for seed in options.seeds:
                for row in dict.fromkeys((DENSE, *options.rows)):
                    if found(cells, row, seed, ratio) is None:
                        print(f"1 : {ratio}, {row}, seed {seed}", file=sys.stderr, flush=True)
                        try:
                            cell = run(row, seed, train, test, found(cells, DENSE, seed, ratio))
                        except TrainingError as error:
                            cell = {"row": row, "seed": seed, "reason": str(error)}
                        cells.append({"ratio": ratio, **cell})
                        write_atomically(options.json, encoded(cells, test.targets.tolist()))
    labels = unpacked(json.loads(options.json.read_text())["labels"])
    for ratio in dict.fromkeys(cell["ratio"] for cell in cells):
        print(f"\n1 : {ratio}\n")
        print("\n\n".join("\n".join(part(of(cells, ratio), labels)) for part in (table, over_seeds, sentences)))
    return 0


def of(cells: Sequence[Cell], ratio: int) -> list[Cell]:
    """The cells of an imbalance."""
    return [cell for cell in cells if cell["ratio"] == ratio]


def found(cells: Sequence[Cell], row: str, seed: int, ratio: int) -> Cell | None:
    return next((cell for cell in of(cells, ratio) if (cell["row"], cell["seed"]) == (row, seed)), None)


def trained(cells: Sequence[Cell], row: str) -> list[Cell]:
    """The cells of a row whose training did not fail."""
    return [cell for cell in cells if cell["row"] == row and "reason" not in cell]


def imbalanced(path: Path, ratio: int) -> tuple[TensorSamples, TensorSamples]:
    """The first `USUAL` training samples of each class, of the rare ones ``ratio`` times fewer, and all test samples."""
    with np.load(path, allow_pickle=False) as held:
        x, y = held["x_train"], held["y_train"]
        rows = np.sort(
            np.concatenate([np.flatnonzero(y == k)[: USUAL // ratio if k in RARE else USUAL] for k in range(CLASSES)])
        )
        inputs = torch.from_numpy(x[rows])[:, None]
        mean, std = ((inputs / 255).mean().reshape(1), (inputs / 255).std().reshape(1))
        parts = ((inputs, y[rows]), (torch.from_numpy(held["x_test"])[:, None], held["y_test"]))
        train, test = (
            TensorSamples(images, torch.from_numpy(labels.astype(np.int64)), mean=mean, std=std)
            for images, labels in parts
        )
    return train, test


def network() -> nn.Module:
    """Three convolutions and a linear layer, 24,000 weights."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 16, 2), (16, 32, 2), (32, 64, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


def method(row: str, dense: Cell | None) -> Method:
    """The method of a row; ``balancing-act`` gets the recalls of the dense cell."""
    if row == DENSE:
        return sp.methods.dense()
    name, own = WRAPPED[row]
    wrapper = name.partition("(")[0]
    if wrapper == "balancing-act":
        assert dense is not None, "the dense network of the seed is trained first"
        own = {**own, "dense_recall": dense["train_recall"]}
    return sp.methods.build(name, {"density": DENSITY, **({wrapper: own} if own else {})})


def run(row: str, seed: int, train: TensorSamples, test: TensorSamples, dense: Cell | None) -> Cell:
    """Train and test a network.

    Returns:
        The row and the seed; the answers to the test samples; of the dense network the recalls on the training samples; density,
        steps, seconds and the readings of the method at the end.
    """
    start = time.perf_counter()
    torch.manual_seed(seed)
    steps = EPOCHS * (len(train) // BATCH)
    settings = Settings(epochs=EPOCHS, batch_size=BATCH, lr=LR, warmup=steps // 20, device="cpu", seed=seed)
    program = sp.trace(network(), (train.batch(torch.arange(2)).inputs,))
    trainer = LOOP["trained"](method(row, dense), program, train, settings)
    readings = {key: round(value, 4) for key, value in trainer.readings().items()}
    answers: Tensor = evaluate(program, test)["logits"].argmax(1)
    cell: Cell = {"row": row, "seed": seed, "answers": packed(answers.tolist())}
    if row == DENSE:
        cell["train_recall"] = metrics.class_accuracy(evaluate(program, train)["logits"], train.targets)
    density = 1.0 if row == DENSE else program.costs().density
    seconds = round(time.perf_counter() - start, 1)
    return {**cell, "density": density, "steps": trainer.steps, "seconds": seconds, "readings": readings}


def packed(classes: Sequence[int]) -> str:
    """Class numbers, each of one digit, as one text."""
    return "".join(map(str, classes))


def unpacked(text: str) -> np.ndarray:
    """The class numbers of `packed`, int64 [N]."""
    return np.array([*map(int, text)])


def figures(cells: Sequence[Cell], row: str, labels: np.ndarray) -> list[dict[str, float]]:
    """The figures of a row, one mapping per seed; `CHANCE` compares the dense network of each seed with that of the next."""
    dense = {cell["seed"]: unpacked(cell["answers"]) for cell in cells if cell["row"] == DENSE}
    if row == CHANCE:
        following = dict(zip(dense, [*list(dense)[1:], next(iter(dense))], strict=True))
        pairs = [(dense[seed], dense[other]) for seed, other in following.items() if other != seed]
    else:
        pairs = [(dense[cell["seed"]], unpacked(cell["answers"])) for cell in trained(cells, row)]
    rare = np.isin(labels, RARE)
    rows = list[dict[str, float]]()
    for before, after in pairs:
        found = {"accuracy": float((after == labels).mean()), "rare": float((after == labels)[rare].mean())}
        if row != DENSE:
            measured = damage(before, after, labels, CLASSES)
            known = [entry for entry in measured.classes if entry]
            found |= {"max_excess_gap": measured.max_excess_gap, "churn": measured.churn}
            found |= {"worst_change": min(entry.change for entry in known)}
            found |= {"worse": float(sum(entry.verdict == "worse" for entry in known))}
        rows.append(found)
    return rows


def table(cells: Sequence[Cell], labels: np.ndarray) -> list[str]:
    """Markdown: means over seeds of each row, in percent, with the range over seeds."""
    head = ["", "seeds", *(f"{title}, %" for title in FIGURES.values()), "classes worse"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for row in (DENSE, CHANCE, *WRAPPED):
        measured, failed = figures(cells, row, labels), sum(c["row"] == row and "reason" in c for c in cells)
        if failed:
            lines.append(
                f"| {NAMES[row]} | {failed} | training failed: gradients were not finite{' |' * (len(head) - 2)}"
            )
        if measured:
            shown = [_range([100 * one[key] for one in measured]) if key in measured[0] else "" for key in FIGURES]
            worse = " ".join(f"{one['worse']:.0f}" for one in measured) if "worse" in measured[0] else ""
            lines.append(f"| {NAMES[row]} | {len(measured)} | {' | '.join(shown)} | {worse} |")
    return lines


def over_seeds(cells: Sequence[Cell], labels: np.ndarray) -> list[str]:
    """Markdown: exemplars of each sparse row between the populations of all seeds, beside what chance does."""
    lines = ["| | seeds | exemplars | differ at equal numbers, % | chance, % |", "|" + " --- |" * 5]
    dense = {cell["seed"]: unpacked(cell["answers"]) for cell in cells if cell["row"] == DENSE}
    for row in WRAPPED:
        ours = {cell["seed"]: unpacked(cell["answers"]) for cell in trained(cells, row)}
        seeds = sorted(ours.keys() & dense.keys())
        if seeds:
            one = exemplars(np.stack([dense[s] for s in seeds]), np.stack([ours[s] for s in seeds]), labels)
            share = [f"{100 * value:.1f}" if value is not None else "" for value in (one.between, one.floor)]
            lines.append(f"| {NAMES[row]} | {len(seeds)} | {int(one.identified.sum()):,} | {' | '.join(share)} |")
    return lines


def sentences(cells: Sequence[Cell], labels: np.ndarray) -> list[str]:
    """Per protecting row, its paired differences to plain pruning with Student's intervals over seeds; what holds is said only if clear."""
    base, lines = figures(cells, BASE, labels), list[str]()
    for row in WRAPPED:
        ours = figures(cells, row, labels)
        if row == BASE or len(ours) != len(base) or len(ours) < 2:
            continue
        told = []
        for key in ("max_excess_gap", "rare", "accuracy"):
            one = paired_difference([100 * cell[key] for cell in ours], [100 * cell[key] for cell in base])
            assert one.interval is not None
            clear = "" if one.clear else ", not clear"
            told.append(f"{FIGURES[key]} {one.mean:+.1f} ({one.interval[0]:+.1f} to {one.interval[1]:+.1f}{clear})")
        lines.append(f"- {NAMES[row]} against `gmp`, in points: {'; '.join(told)}.")
    return lines


def _range(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def encoded(cells: Sequence[Cell], labels: Sequence[int]) -> bytes:
    """The JSON of all cells, one a line."""
    lines = ",\n".join(json.dumps(cell) for cell in cells)
    return f'{{"labels": {json.dumps(packed(labels))}, "cells": [\n{lines}\n]}}\n'.encode()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/fashion_mnist.npz")
    parser.add_argument("--ratios", nargs="+", type=int, default=list(RATIOS), help="imbalance")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "pruning_damage.json")
    parser.add_argument("--show", action="store_true", help="show what is stored, and train nothing")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
