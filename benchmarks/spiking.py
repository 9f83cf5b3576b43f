"""Sparse training of a spiking network on 8x8 digits: set, rigl and ndsnn, with the last hidden layer without and with batch norm.

The network is conv32, conv32, pool, conv64, pool, a linear layer of 128 and the classifier, with neurons after each layer but the last,
over 4 steps of time (leak 0.5, soft reset, surrogate atan). Without a batch norm its linear layer is silent when a sparse training begins.
1200 images train it and 597 test it. Each row has what it costs: the mean density over training, the spike rate of the trained network, and
the additions per image that its spikes cause. All cells of a seed start from the same weights and take as many steps over the same batches.
A finished cell is kept in the JSON file and is not done again.

python benchmarks/spiking.py                       # all cells, less than a minute each on one core
python benchmarks/spiking.py --table               # only prints the tables
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
from sklearn.datasets import load_digits
from torch import nn

import sparsify as sp
from sparsify.calibration import evaluate
from sparsify.figures import metrics
from sparsify.figures.intervals import paired_difference
from sparsify.files import write_atomically
from sparsify.ir.spikes import mean_rate, spikes_over
from sparsify.parts.samples import TensorSamples
from sparsify.training.settings import Settings

ROOT = Path(__file__).parents[1]
LOOP = runpy.run_path(str(ROOT / "benchmarks" / "loop.py"))
EPOCHS, BATCH, LR, TRAINED = 30, 64, 0.1, 1200
SPARSITIES, METHODS, NORMS, SEEDS = (0.9, 0.95, 0.98, 0.99), ("set", "rigl", "ndsnn"), ("some", "all"), (0, 1, 2)
OPTIONS: dict[str, dict[str, Any]] = {
    "ndsnn": {"initial_density": 0.4},
    "rigl": {"drop_fraction": 0.5},
    "set": {"drop_fraction": 0.5},
}
Cell = dict[str, Any]


def network(norms: str) -> nn.Module:
    """The network; ``norms`` is ``all`` with a batch norm after its linear layer, and ``some`` without."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    hidden = [nn.Flatten(), nn.Linear(256, 128), *([nn.BatchNorm1d(128)] if norms == "all" else []), nn.ReLU()]
    layers = [
        *block(1, 32),
        *block(32, 32),
        nn.MaxPool2d(2),
        *block(32, 64),
        nn.MaxPool2d(2),
        *hidden,
        nn.Linear(128, 10),
    ]
    return nn.Sequential(*layers)


def digits(seed: int) -> tuple[TensorSamples, TensorSamples]:
    """The images in [0, 1], split by the seed."""
    images, target = (torch.from_numpy(value) for value in load_digits(return_X_y=True))
    images = images.float().reshape(-1, 1, 8, 8) / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    train, test = order[:TRAINED], order[TRAINED:]
    return TensorSamples(images[train], target[train]), TensorSamples(images[test], target[test])


def order(seeds: Sequence[int]) -> Iterator[Cell]:
    """The cells, seed by seed; the dense ones first."""
    for seed in seeds:
        for norms in NORMS:
            yield {"norms": norms, "sparsity": 0.0, "method": "dense", "seed": seed}
            for sparsity in SPARSITIES:
                for name in METHODS:
                    yield {"norms": norms, "sparsity": sparsity, "method": name, "seed": seed}


def method(cell: Cell, steps: int) -> sp.Method:
    """The method of a cell: a round every 10 steps, until three quarters of the steps."""
    if not cell["sparsity"]:
        return sp.methods.dense()
    rounds = {"update_every": 10, "stop_at": steps * 3 // 4}
    return sp.methods.build(
        cell["method"], {"density": round(1 - cell["sparsity"], 6), **rounds, **OPTIONS[cell["method"]]}
    )


def run(cell: Cell, epochs: int) -> Cell:
    """Train and test a network.

    Returns:
        Accuracy on the test images in [0, 1]; mean density over the steps; spike rate and additions per image; neurons that never fired;
        steps; seconds.
    """
    began, seed = time.perf_counter(), cell["seed"]
    train, test = digits(seed)
    torch.manual_seed(seed)
    settings = Settings(epochs=epochs, batch_size=BATCH, lr=LR, warmup=0, device="cpu", seed=seed, weight_decay=5e-4)
    program = sp.trace(network(cell["norms"]), (train.batch(torch.arange(2)).inputs,))
    program = sp.Pipeline.parse("spiking{steps=4}")(program)
    trainer = LOOP["trained"](method(cell, LOOP["steps_of"](train, settings)), program, train, settings)
    layers, work = spikes_over(program, test)
    return {
        "accuracy": metrics.accuracy(evaluate(program, test)["logits"], test.targets),
        "mean_density": round(trainer.savings.mean_density, 4),
        "rate": round(mean_rate(layers), 4),
        "accumulates": round(work.accumulates),
        "silent": sum(layer.silent for layer in layers),
        "steps": trainer.steps,
        "seconds": round(time.perf_counter() - began, 1),
    }


def of(cells: Sequence[Cell], norms: str, sparsity: float, name: str) -> list[Cell]:
    """The cells of a row, by seed."""
    found = [c for c in cells if (c["norms"], c["sparsity"], c["method"]) == (norms, sparsity, name)]
    return sorted(found, key=lambda cell: cell["seed"])


def table(cells: Sequence[Cell], norms: str) -> list[str]:
    """Markdown: means over seeds, with the range of the accuracies."""
    head = ["sparsity", "method", "accuracy, %", "mean density", "spike rate", "additions per image", "silent neurons"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for sparsity in (0.0, *SPARSITIES):
        for name in METHODS if sparsity else ("dense",):
            rows = of(cells, norms, sparsity, name)
            if not rows:
                continue
            shown = [100 * row["accuracy"] for row in rows]
            means = {
                key: statistics.fmean(row[key] for row in rows)
                for key in ("mean_density", "rate", "accumulates", "silent")
            }
            lines.append(
                f"| {100 * sparsity:.0f} % | `{name}` | {statistics.fmean(shown):.1f} ({min(shown):.1f} to {max(shown):.1f}) | "
                f"{means['mean_density']:.3f} | {means['rate']:.3f} | {means['accumulates']:,.0f} | {means['silent']:.0f} |"
            )
    return lines


def sentences(cells: Sequence[Cell], norms: str) -> list[str]:
    """Paired differences of ndsnn to the others with Student's intervals over seeds."""
    lines = list[str]()
    for sparsity in SPARSITIES:
        ours, told = of(cells, norms, sparsity, "ndsnn"), list[str]()
        for name in ("set", "rigl"):
            base = of(cells, norms, sparsity, name)
            if len(base) != len(ours) or len(ours) < 2:
                continue
            one = paired_difference([100 * row["accuracy"] for row in ours], [100 * row["accuracy"] for row in base])
            assert one.interval is not None
            clear = "" if one.clear else ", not clear"
            told.append(f"against `{name}` {one.mean:+.1f} ({one.interval[0]:+.1f} to {one.interval[1]:+.1f}{clear})")
        if told:
            lines.append(f"- `ndsnn` at {100 * sparsity:.0f} %, accuracy in points: {'; '.join(told)}.")
    return lines


def main() -> int:
    """The exit code: 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "spiking.json")
    parser.add_argument("--table", action="store_true", help="show what is stored, and train nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cells: list[Cell] = json.loads(options.json.read_text())["cells"] if options.json.exists() else []
    for wanted in () if options.table else order(options.seeds):
        if any(wanted.items() <= cell.items() for cell in cells):
            continue
        cells.append({**wanted, **run(wanted, options.epochs)})
        print(json.dumps(cells[-1]), file=sys.stderr, flush=True)
        lines = ",\n".join(map(json.dumps, cells))
        write_atomically(options.json, f'{{"cells": [\n{lines}\n]}}\n'.encode())
    for norms in NORMS:
        print(f"batch norm: {norms}\n", *table(cells, norms), "", *sentences(cells, norms), "", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
