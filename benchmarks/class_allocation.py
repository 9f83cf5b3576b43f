"""Splitting a density over layers by saliency of the loss or by magnitude, on Fashion-MNIST with three rare classes.

The data and the network are those of pruning_damage.py: pullover, sandal and bag have 100 times fewer training samples than the other
classes. `gmp` prunes to 95 and 98 % with the allocations `global_magnitude` and `global_saliency`, with plain cross-entropy and with
`class-weighted` by frequency, in which case the gradient that `global_saliency` ranks by is that of the weighted loss. All cells of a seed
start from the same initial weights and take as many steps over the same batches. A sparse network is compared with the dense one of the
same loss and seed on the 10,000 test samples. A finished cell is kept in the JSON file and is not done again.

python benchmarks/class_allocation.py --data fashion_mnist.npz           # all cells, each less than a minute on one core
python benchmarks/class_allocation.py --show                             # only prints the tables
"""

from __future__ import annotations

import argparse
import json
import runpy
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import sparsify as sp
from sparsify.calibration import evaluate
from sparsify.figures import metrics
from sparsify.figures.intervals import paired_difference
from sparsify.files import write_atomically
from sparsify.parts.samples import TensorSamples
from sparsify.training.settings import Settings

ROOT = Path(__file__).parents[1]
DAMAGE = runpy.run_path(str(ROOT / "benchmarks" / "pruning_damage.py"))
RARE, RATIO = DAMAGE["RARE"], 100
EPOCHS, BATCH, LR = 6, 128, 0.1
SPARSITIES, ALLOCATIONS = (0.95, 0.98), ("global_magnitude", "global_saliency")
LOSSES = {"plain": "gmp", "class-weighted": "class-weighted(gmp)"}
SEEDS = (0, 1, 2)
FIGURES = {"accuracy": "accuracy", "rare": "recall of rare classes", "drop": "largest loss of a recall"}
"""What the table shows, in percent."""
Cell = dict[str, Any]


def main() -> int:
    """The exit code: 0."""
    options = _arguments()
    torch.set_num_threads(1)
    cells: list[Cell] = json.loads(options.json.read_text())["cells"] if options.json.exists() else []
    if not options.show:
        train, test = DAMAGE["imbalanced"](options.data, RATIO)
        for wanted in order(options.seeds):
            if any(wanted.items() <= cell.items() for cell in cells):
                continue
            cells.append({**wanted, **run(wanted, train, test)})
            print(json.dumps(cells[-1]), file=sys.stderr, flush=True)
            lines = ",\n".join(map(json.dumps, cells))
            write_atomically(options.json, f'{{"cells": [\n{lines}\n]}}\n'.encode())
    print("\n".join(table(cells)) + "\n\n" + "\n".join(sentences(cells)))
    return 0


def order(seeds: Sequence[int]) -> Iterator[Cell]:
    """The cells, seed by seed; dense ones first."""
    for seed in seeds:
        yield from ({"sparsity": 0.0, "loss": loss, "allocation": "", "seed": seed} for loss in LOSSES)
        for sparsity in SPARSITIES:
            for loss in LOSSES:
                for allocation in ALLOCATIONS:
                    yield {"sparsity": sparsity, "loss": loss, "allocation": allocation, "seed": seed}


def method(cell: Cell) -> sp.Method:
    """The method of a cell."""
    if not cell["sparsity"]:
        return sp.methods.build(LOSSES[cell["loss"]].replace("gmp", "dense"), {})
    options = {"density": round(1 - cell["sparsity"], 6), "allocation": cell["allocation"]}
    return sp.methods.build(LOSSES[cell["loss"]], options)


def run(cell: Cell, train: TensorSamples, test: TensorSamples) -> Cell:
    """Train and test a network.

    Returns:
        Accuracy and the recall of each class on the test samples, in [0, 1]; the density of each layer in their order; steps, seconds.
    """
    start, seed = time.perf_counter(), cell["seed"]
    torch.manual_seed(seed)
    steps = EPOCHS * (len(train) // BATCH)
    settings = Settings(epochs=EPOCHS, batch_size=BATCH, lr=LR, warmup=steps // 20, device="cpu", seed=seed)
    program = sp.trace(DAMAGE["network"](), (train.batch(torch.arange(2)).inputs,))
    trainer = DAMAGE["LOOP"]["trained"](method(cell), program, train, settings)
    logits = evaluate(program, test)["logits"]
    return {
        "accuracy": metrics.accuracy(logits, test.targets),
        "recalls": [round(float(value or 0.0), 6) for value in metrics.class_accuracy(logits, test.targets)],
        "densities": [round(float(mask.double().mean()), 6) for mask in program.masks().values()],
        "steps": trainer.steps,
        "seconds": round(time.perf_counter() - start, 1),
    }


def of(cells: Sequence[Cell], sparsity: float, loss: str, allocation: str) -> list[Cell]:
    """The cells of a row, by seed, with the figures of the table; ``drop`` is against the dense cell of the same loss and seed."""
    dense = {cell["seed"]: cell["recalls"] for cell in cells if not cell["sparsity"] and cell["loss"] == loss}
    found = [c for c in cells if (c["sparsity"], c["loss"], c["allocation"]) == (sparsity, loss, allocation)]
    return [
        {
            **cell,
            "rare": statistics.fmean(cell["recalls"][k] for k in RARE),
            "drop": max(b - a for b, a in zip(dense[cell["seed"]], cell["recalls"], strict=True)),
        }
        for cell in sorted(found, key=lambda cell: cell["seed"])
    ]


def table(cells: Sequence[Cell]) -> list[str]:
    """Markdown: means over seeds of each row in percent, with the range over seeds, and the mean density of each layer."""
    head = [
        "sparsity",
        "method",
        "allocation",
        *(f"{title}, %" for title in FIGURES.values()),
        "density of the layers, %",
    ]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for sparsity in (0.0, *SPARSITIES):
        for loss, name in LOSSES.items():
            for allocation in ALLOCATIONS if sparsity else ("",):
                rows = of(cells, sparsity, loss, allocation)
                if not rows:
                    continue
                shown = [_range([100 * row[key] for row in rows]) for key in FIGURES]
                layers = " ".join(
                    f"{100 * statistics.fmean(values):.1f}"
                    for values in zip(*(r["densities"] for r in rows), strict=True)
                )
                name = name if sparsity else name.replace("gmp", "dense")
                start = [f"{100 * sparsity:.0f} %", f"`{name}`", f"`{allocation}`" if allocation else ""]
                lines.append(f"| {' | '.join([*start, *(shown if sparsity else [*shown[:2], '']), layers])} |")
    return lines


def sentences(cells: Sequence[Cell]) -> list[str]:
    """Paired differences of the two allocations with Student's intervals over seeds."""
    lines = list[str]()
    for sparsity in SPARSITIES:
        for loss, name in LOSSES.items():
            base, ours = (of(cells, sparsity, loss, allocation) for allocation in ALLOCATIONS)
            if len(base) != len(ours) or len(ours) < 2:
                continue
            told = []
            for key, title in FIGURES.items():
                one = paired_difference([100 * row[key] for row in ours], [100 * row[key] for row in base])
                assert one.interval is not None
                clear = "" if one.clear else ", not clear"
                told.append(f"{title} {one.mean:+.1f} ({one.interval[0]:+.1f} to {one.interval[1]:+.1f}{clear})")
            lines.append(
                f"- `{name}` at {100 * sparsity:.0f} %, `global_saliency` against `global_magnitude`, in points: {'; '.join(told)}."
            )
    return lines


def _range(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/fashion_mnist.npz")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "class_allocation.json")
    parser.add_argument("--show", action="store_true", help="show what is stored, and train nothing")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
