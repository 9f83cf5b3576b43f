"""CALIRARE beside class-weighted loss and temperature scaling, dense and 90 % sparse, on two data sets with rare classes.

Cora: one topic against the rest (examples/cora.py, 20 of 140 labelled papers), Planetoid's split. Fashion-MNIST: 1000 training images of
the first class, 10 of the last, in between on a geometric line, and the whole test set. Every cell (data, sparsity, arm, seed) is stored
when it is done; the same command goes on where it was. Figures are of the test part; temperatures, and intervals for the EICE, come from
the validation part, which no arm trains on.

python benchmarks/calirare.py --cora cora.npz --fashion fashion_mnist.npz      # about 20 minutes on one core
python benchmarks/calirare.py --show                                           # only prints the tables
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import runpy
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import sparsify as sp
from sparsify.calibration import fit
from sparsify.figures import metrics
from sparsify.figures.individual import individual_calibration
from sparsify.files import write_atomically
from sparsify.ir import Program, classifier_of, features_over
from sparsify.ir.evaluation import outputs_over
from sparsify.parts.individual import stratified
from sparsify.parts.jackknife import centres, intervals, jackknife
from sparsify.parts.samples import Samples, Subset, TensorSamples
from sparsify.training import Settings, train

ROOT = Path(__file__).parents[1]
CORA = runpy.run_path(str(ROOT / "examples" / "cora.py"))
SPARSITIES, SEEDS = (0.0, 0.9), (0, 1, 2)
SETTINGS = {
    "cora": {"epochs": 60, "batch_size": 35, "lr": 0.02, "weight_decay": 0.05},
    "fashion": {"epochs": 12, "batch_size": 64, "lr": 0.001, "weight_decay": 0.01},
}
ASIDE = {"cora": 35, "fashion": 128}
"""Samples that calirare sets aside: a quarter of Cora's training part."""
ARMS = ("plain", "class-weighted", "calirare 0.1", "calirare 0.5", "fewer samples")
"""The number is the weight of the penalty. The last arm trains without as many samples as calirare sets aside, and has no penalty."""
LARGEST, RATIO = 1000, 100
INFLUENCES, MEASURED = 400, 2000
"""Validation samples that the intervals of the figure come from, and test samples that it is taken over, at most."""
TITLES = {"cora": "Cora, one topic against the rest", "fashion": "Fashion-MNIST, 1 : 100"}
COLUMNS = {
    "accuracy": "accuracy", "recall": "minority recall", "ece": "ECE", "classwise": "class-wise ECE", "gap": "minority gap",
    "eice": "EICE", "eice_minority": "EICE, minority", "eice_signed": "EICE, signed",
}  # fmt: skip
Cell = dict[str, Any]
Parts = dict[str, TensorSamples]


def main() -> int:
    """The exit code: 0."""
    arguments = _arguments()
    torch.set_num_threads(1)
    cells: list[Cell] = json.loads(arguments.json.read_text())["cells"] if arguments.json.exists() else []
    for wanted in () if arguments.show else order(arguments.seeds):
        if any(wanted.items() <= cell.items() for cell in cells):
            continue
        cells.append({**wanted, **measure(wanted, arguments)})
        print(json.dumps(cells[-1]), file=sys.stderr, flush=True)
        write_atomically(arguments.json, (json.dumps({"cells": cells}, indent=1) + "\n").encode())
    for data in TITLES:
        print(f"{TITLES[data]}\n\n" + "\n".join(table(cells, data)) + "\n")
    return 0


def order(seeds: Sequence[int]) -> Iterator[Cell]:
    """The cells, so that every arm has its first seed early."""
    for seed in seeds:
        for data in TITLES:
            for sparsity in SPARSITIES:
                yield from ({"data": data, "sparsity": sparsity, "arm": arm, "seed": seed} for arm in ARMS)


def measure(cell: Cell, arguments: argparse.Namespace) -> Cell:
    """Train a cell and take its figures, before and after temperature scaling."""
    data, seed = cell["data"], cell["seed"]
    if data == "cora":
        os.environ["CORA"] = str(arguments.cora)
        parts, build = cora(), CORA["rare_gcn"]
    else:
        parts, build = fashion(str(arguments.fashion), seed), mlp
    train_part: Samples = parts["train"]
    if cell["arm"] == "fewer samples":
        gone = stratified(parts["train"].targets, ASIDE[data], torch.Generator().manual_seed(seed))
        kept = torch.ones(len(train_part), dtype=torch.bool)
        kept[gone] = False
        train_part = Subset(train_part, kept.nonzero().squeeze(1))
    torch.manual_seed(seed)
    program = sp.trace(build(), (parts["train"].batch(torch.arange(4)).inputs,))
    settings = Settings(**SETTINGS[data], seed=seed, optimizer="adamw", checkpoint_every=10**6)
    with tempfile.TemporaryDirectory() as folder:
        train(method(cell), program, train_part, parts["validation"], settings, folder=Path(folder), key="cell")
    minority = CLASS[data]
    if program.masks():
        program = sp.Pipeline.parse("fold-masks")(program)
    program = sp.Pipeline.parse("attach-calibration-head")(program).eval()
    fit(program, parts["validation"])
    temperature = float(program.tensor("calibration.temperature"))
    figures = functools.partial(figures_of, program, parts, minority)
    return {"temperature": temperature, "before": figures(1.0), "after": figures(temperature)}


CLASS = {"cora": 1, "fashion": 9}
"""The rarest class."""


def method(cell: Cell) -> sp.Method:
    """The method of a cell."""
    made = sp.methods.gmp(density=round(1 - cell["sparsity"], 6)) if cell["sparsity"] else sp.methods.dense()
    if "class-weighted" in cell["arm"]:
        made = sp.methods.class_weighted(made)
    if cell["arm"].startswith("calirare"):
        weight = float(cell["arm"].split()[1])
        made = sp.methods.calirare(made, weight=weight, samples=ASIDE[cell["data"]])
    return made


def figures_of(program: Program, parts: Parts, minority: int, temperature: float) -> dict[str, float]:
    """Figures of the test part with logits divided by a temperature, which is a last layer divided by it."""
    test, validation = parts["test"], parts["validation"]
    labels, layer = test.targets, classifier_of(program)
    logits = outputs_over(program, test, names=("logits",))["logits"].double() / temperature
    p = logits.softmax(1)
    weight, bias = layer.weight.double() / temperature, layer.bias.double() / temperature
    rows = stratified(validation.targets, min(INFLUENCES, len(validation)), torch.Generator().manual_seed(0))
    pieces = jackknife(features_over(program, Subset(validation, rows)), validation.targets[rows], weight, bias)
    some = stratified(labels, min(MEASURED, len(labels)), torch.Generator().manual_seed(0))
    features, predicted = features_over(program, Subset(test, some)), p[some].argmax(1)
    centre = centres(pieces, features, predicted, weight, bias)
    lower, upper = intervals(pieces, features, predicted, weight, bias)
    right = (predicted == labels[some]).double()
    found = individual_calibration(p[some], centre, labels[some])
    mine = labels == minority
    return {
        "accuracy": metrics.accuracy(p, labels),
        "recall": float((p[mine].argmax(1) == minority).double().mean()),
        "nll": metrics.nll(p, labels),
        "ece": metrics.ece(p, labels),
        "classwise": metrics.classwise_ece(p, labels),
        "gap": metrics.signed_gap(p[mine], labels[mine]),
        "eice": found["eice"],
        "eice_signed": found["signed"],
        "eice_minority": found["classes"][minority]["eice"],
        "coverage": float(((right >= lower) & (right <= upper)).double().mean()),
    }


def cora() -> Parts:
    """Numbers of papers; class 1 is the rare topic."""
    return {name: TensorSamples(torch.from_numpy(x), torch.from_numpy(y)) for name, (x, y) in CORA["rare"]().items()}


def fashion(path: str, seed: int) -> Parts:
    """Images in [0, 1] with fewer of each class than of the one before; as many again, with the same shares, for validation."""
    with np.load(path, allow_pickle=False) as found:
        x, y, x_test, y_test = (torch.from_numpy(found[name]) for name in ("x_train", "y_train", "x_test", "y_test"))
    generator, kept, held = torch.Generator().manual_seed(seed), list[Tensor](), list[Tensor]()
    for k in range(10):
        count = round(LARGEST * RATIO ** (-k / 9))
        rows = (y == k).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        kept.append(rows[:count])
        held.append(rows[count : count + max(1, count // 2)])
    parts = {"train": torch.cat(kept), "validation": torch.cat(held)}
    made = {name: TensorSamples(x[rows], y[rows].long()) for name, rows in parts.items()}
    return {**made, "test": TensorSamples(x_test, y_test.long())}


def mlp() -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))


def table(cells: Sequence[Mapping[str, Any]], data: str) -> list[str]:
    """Mean and standard deviation over seeds, in percent, of each arm, before and after temperature scaling."""
    lines = [
        f"| sparsity | arm | T | {' | '.join(COLUMNS.values())} |",
        f"| --- | --- | ---: |{' ---: |' * len(COLUMNS)}",
    ]
    for sparsity in SPARSITIES:
        for arm in ARMS:
            some = [c for c in cells if (c["data"], c["sparsity"], c["arm"]) == (data, sparsity, arm)]
            for when in ("before", "after") if some else ():
                temperature = f"{statistics.mean(c['temperature'] for c in some):.2f}" if when == "after" else "1"
                shown = " | ".join(
                    spread([c[when][name] for c in some], 2 if "eice" in name else 1) for name in COLUMNS
                )
                lines.append(f"| {sparsity:.0%} | {arm} | {temperature} | {shown} |")
    return lines


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation over seeds, in percent."""
    deviation = f" ± {100 * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.{digits}f}{deviation}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--cora", type=Path, default=Path("cora.npz"))
    parser.add_argument("--fashion", type=Path, default=Path("fashion_mnist.npz"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "calirare.json", help="results")
    parser.add_argument("--show", action="store_true", help="only print the tables")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
