"""Which method should be the default: held-out accuracy, what training counts, and where growth puts its weights.

Every row of a task has the same seeds, data, steps and learning rates. A cell (task, sparsity, row, seed) is stored when it is done, so
that a benchmark that was stopped goes on where it was; the figures of a cell that is there are not computed again.

python benchmarks/default_method.py spoken_digits --data spoken_digits_logmel.npz
python benchmarks/default_method.py digits --rows gmp,set,rigl --sparsities 0.9 --seeds 0,1,2
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.calibration import evaluate
from sparsify.errors import SparsifyError
from sparsify.figures import metrics
from sparsify.figures.intervals import paired_difference
from sparsify.files import write_atomically
from sparsify.ir import Program, trace
from sparsify.loading import Data, load_data
from sparsify.loading.models import digits_cnn
from sparsify.methods import build
from sparsify.parts.compute import evaluations
from sparsify.reports.latency import machine
from sparsify.training import Interrupted, Settings, train

RESULTS = Path(__file__).parent / "results" / "default_method.json"


def pictures(features: int | None = None) -> nn.Module:
    """Three convolutions of 32, 64 and 128 channels with batch norms and stride 2, pooling after the first, and two linear layers.

    Args:
        features: how many the first linear layer reads, what the convolutions leave of a picture of one channel; None: it reads their
            average over places, 128.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if inputs == 1 else []
    layers += [nn.AdaptiveAvgPool2d(1)] if features is None else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features or 128, 128), nn.ReLU(), nn.Linear(128, 10))


def without_norms() -> nn.Module:
    """Two convolutions and two linear layers without batch norms, for 28 x 28 grey images."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A model and how long it trains; rounds come every 20 steps."""

    model: Callable[[], nn.Module]
    epochs: int
    samples: int | None = None
    warmup: int = 30


TASKS: dict[str, Task] = {
    "spoken_digits": Task(pictures, epochs=12),
    "spoken_digits_wide": Task(lambda: pictures(128 * 2 * 4), epochs=12),
    "digits": Task(digits_cnn, epochs=20, warmup=20),
    "fashion_mnist": Task(without_norms, epochs=12, samples=1500),
    "mnist": Task(pictures, epochs=12, samples=1500),
}
ROUND = {"update_every": 20}
ROWS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "dense": ("dense", {}),
    "static": ("static", {}),
    "set": ("set", ROUND),
    "rigl": ("rigl", ROUND),
    "itop": ("itop", ROUND),
    "dst-ee": ("dst-ee", ROUND),
    "granet": ("granet", ROUND),
    "gmp": ("gmp", ROUND),
    "one-shot": ("one-shot", {}),
    "rigl outputs": ("rigl", {**ROUND, "normalise": "outputs"}),
    "rigl inputs": ("rigl", {**ROUND, "normalise": "inputs"}),
    "rigl both": ("rigl", {**ROUND, "normalise": "both"}),
    "rigl fan-in": ("rigl", {**ROUND, "initial_scale": "fan-in"}),
    "static fan-in": ("static", {"initial_scale": "fan-in"}),
    "rigl steps": ("rigl", {**ROUND, "replaces_step": False}),
    "rigl small": ("rigl", {**ROUND, "drop_fraction": 0.1}),
    "rigl rare": ("rigl", {"update_every": 60}),
    "dst-ee outputs": ("dst-ee", {**ROUND, "normalise": "outputs", "c": 0.1}),
}
BASE = "static"
"""The row that others are compared with: a random mask that stays as it is."""
GRID = ("dense", "gmp", "set", "rigl", "static", "granet", "dst-ee", "itop", "one-shot")
"""The rows that run when none are named."""


def main() -> int:
    """The exit code: 0, 2 for what cannot be run, 130 when stopped."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    cells: list[dict[str, Any]] = json.loads(arguments.json.read_text())["cells"] if arguments.json.exists() else []
    try:
        for sparsity, row, seed in _order(arguments):
            wanted = {"task": arguments.task, "sparsity": 0.0 if row == "dense" else sparsity, "row": row, "seed": seed}
            if any(wanted.items() <= cell.items() for cell in cells):
                continue
            cell = {**wanted, **measure(arguments.task, arguments.data, row, wanted["sparsity"], seed)}
            print(json.dumps(cell), flush=True)
            cells.append(cell)
            write_atomically(arguments.json, encoded(cells))
    except Interrupted:
        print(f"stopped; the cells that were done are in {arguments.json}. The same command goes on.", file=sys.stderr)
        return 130
    except SparsifyError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(table([cell for cell in cells if cell["task"] == arguments.task])))
    return 0


def measure(task: str, path: str, row: str, sparsity: float, seed: int) -> dict[str, Any]:
    """Train one cell and evaluate it on the test part.

    Returns:
        test accuracy and NLL, training accuracy of the last epoch; evaluations (`sparsify.parts.compute.evaluations`); macs, the
        multiply-adds of the run over those of a dense run, if inactive weights cost nothing; and by masked weight that is not dense
        the spread of active weights over outputs and over inputs.
    """
    plan, started = TASKS[task], time.process_time()
    data: Data = load_data(path, seed=seed, train_samples=plan.samples)
    name, options = ROWS[row]
    known = {} if name == "dense" else {"density": round(1.0 - sparsity, 12)}
    method = build(name, {**known, **options})
    torch.manual_seed(seed)
    program = trace(plan.model(), (data.example(),))
    settings = Settings(
        epochs=plan.epochs,
        lr=0.05,
        schedule="cosine-tail",
        warmup=plan.warmup,
        seed=seed,
        checkpoint_every=2**31,
        device="cpu",
    )
    spent = _MultiplyAdds(program)
    with tempfile.TemporaryDirectory() as folder:
        trained = train(
            method, program, data.train, data.validation, settings, folder=Path(folder), key="", on_step=spent.step
        )
    probabilities = evaluate(program, data.test)["logits"].softmax(1)
    return {
        "accuracy": metrics.accuracy(probabilities, data.test.targets),
        "nll": metrics.nll(probabilities, data.test.targets),
        "train_accuracy": trained.history[-1]["accuracy"],
        "evaluations": evaluations(trained.counts["forwards"], trained.counts["backwards"]),
        "macs": spent.share(trained.counts["rounds"] if _grows_by_gradient(method, trained.counts["steps"]) else 0),
        "density": program.costs().density,
        "spread": {name: spread(mask) for name, mask in program.masks().items() if not bool(mask.all())},
        "seconds": round(time.process_time() - started, 1),
    }


class _MultiplyAdds:
    """What the steps of a run multiply: the forward pass and both products of the backward pass, active weights only."""

    def __init__(self, program: Program) -> None:
        self._program, self._density, self._costs, self._steps, self._sum = program, -1.0, program.costs(), 0, 0.0

    def step(self, row: Mapping[str, Any]) -> None:
        """Count a step."""
        if row["density"] != self._density:
            self._density, self._costs = row["density"], self._program.costs()
        self._steps += 1
        self._sum += self._costs.macs_active / self._costs.macs_dense

    def share(self, dense_gradients: int) -> float:
        """The multiply-adds over those of dense training; a dense gradient adds what is inactive of a third of a dense step."""
        sparse = self._sum / self._steps
        return sparse + dense_gradients * (1 - sparse) / 3 / self._steps


def _grows_by_gradient(method: Any, total: int) -> bool:
    topology = method.topology(total) if method.topology else None
    moves = getattr(topology, "moves", (topology,))
    return any(getattr(getattr(move, "grow_by", None), "needs_gradient", False) for move in moves)


def spread(mask: Tensor) -> dict[str, float]:
    """Standard deviation over mean of the active weights by output and by input of a mask [O, I, *K], and the share of empty outputs."""
    outputs, inputs = (
        mask.flatten(1).sum(1).double(),
        mask.flatten(2).sum(-1).sum(0).double() if mask.ndim > 2 else mask.sum(0).double(),
    )
    return {
        "outputs": float(outputs.std(correction=0) / outputs.mean()),
        "inputs": float(inputs.std(correction=0) / inputs.mean()),
        "empty": float((outputs == 0).double().mean()),
    }


def table(cells: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Markdown: one line per row and sparsity, over its seeds. Differences are against `BASE`, paired by seed, with the 95 % interval."""
    yield f"| | sparsity | accuracy | by seed | against `{BASE}` | in training | over outputs | over inputs | multiplications |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    groups = dict[tuple[float, str], list[Mapping[str, Any]]]()
    for cell in sorted(cells, key=lambda cell: (cell["sparsity"], list(ROWS).index(cell["row"]), cell["seed"])):
        groups.setdefault((cell["sparsity"], cell["row"]), []).append(cell)
    for (sparsity, row), group in groups.items():
        values = [100 * cell["accuracy"] for cell in group]
        deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        spreads = [
            "/".join(f"{statistics.mean(c['spread'][name][side] for c in group):.2f}" for name in group[0]["spread"])
            for side in ("outputs", "inputs")
        ]
        columns = (
            f"`{row}`",
            f"{100 * sparsity:g} %",
            f"{statistics.mean(values):.2f}{deviation}",
            ", ".join(f"{value:.1f}" for value in values),
            "" if row == BASE else _difference(group, groups.get((sparsity, BASE), [])),
            f"{100 * statistics.mean(c['train_accuracy'] for c in group):.2f}",
            *spreads,
            f"{statistics.mean(c['macs'] for c in group):.2f}",
        )
        yield f"| {' | '.join(columns)} |"


def _difference(group: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]) -> str:
    """Points of accuracy, over the seeds that both have."""
    others = {cell["seed"]: cell["accuracy"] for cell in base}
    pairs = [(100 * cell["accuracy"], 100 * others[cell["seed"]]) for cell in group if cell["seed"] in others]
    if not pairs:
        return ""
    found = paired_difference([value for value, _ in pairs], [other for _, other in pairs])
    interval = f" ({found.interval[0]:+.2f} to {found.interval[1]:+.2f})" if found.interval else ""
    return f"{found.mean:+.2f}{interval}"


def encoded(cells: Sequence[Mapping[str, Any]]) -> bytes:
    """One cell per line, with the machine."""
    head = {"machine": dict(machine()), "torch": torch.__version__}
    lines = ",\n ".join(json.dumps(cell) for cell in cells)
    return (json.dumps(head)[:-1] + f', "cells": [\n {lines}\n]}}\n').encode()


def _order(arguments: argparse.Namespace) -> Iterator[tuple[float, str, int]]:
    for sparsity in arguments.sparsities:
        for seed in arguments.seeds:
            for row in arguments.rows:
                yield sparsity, row, seed


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--data", help="the file; digits need none")
    parser.add_argument("--rows", default=",".join(GRID), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--sparsities", default="0.9,0.95", help="the first is run over all seeds before the second")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=RESULTS, help="cells are read from here and written here")
    arguments = parser.parse_args()
    if arguments.task != "digits" and not arguments.data:
        parser.error(f"{arguments.task} needs --data FILE")
    arguments.data = arguments.data or "digits"
    arguments.rows = arguments.rows.split(",")
    if unknown := [row for row in arguments.rows if row not in ROWS]:
        parser.error(f"there is no row {', '.join(unknown)}; choose of {', '.join(ROWS)}")
    arguments.sparsities = [float(text) for text in arguments.sparsities.split(",")]
    arguments.seeds = [int(text) for text in arguments.seeds.split(",")]
    return arguments


if __name__ == "__main__":
    sys.exit(main())
