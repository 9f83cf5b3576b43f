"""InVA against an autoencoder per view and one of all views, dense and sparse: accuracy, and predictive intervals.

python benchmarks/inva.py synthetic (or alike)
python benchmarks/inva.py images --data ../shared/data/fashion_mnist.npz

Every cell (data, samples, model, pattern, sparsity, seed) is a run of `sparsify run`, stored when it is done; the same command goes on
where it was. Figures are of the files in ONNX Runtime, over the test part.
"""

from __future__ import annotations

import argparse
import json
import runpy
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from sparsify.figures import regression
from sparsify.figures.intervals import paired_difference
from sparsify.files import write_atomically
from sparsify.ir import Program
from sparsify.loading import Data, load_data
from sparsify.reports.latency import machine
from sparsify.runs.artefacts import run_file
from sparsify.runs.recipe import Recipe, parse_recipe
from sparsify.runs.workflow import run
from sparsify.training import Interrupted

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "inva.py"
MODELS = ("separate", "joint", "inva")
MASKS = (("dense", 0.0), ("unstructured", 0.8), ("unstructured", 0.9), ("grouped:16", 0.8), ("grouped:16", 0.9))
SAMPLES: dict[str, dict[int, tuple[int, Sequence[tuple[str, float]]]]] = {
    "synthetic": {200: (100, MASKS), 800: (40, MASKS[:1])},
    "alike": {200: (100, MASKS[:1])},
    "images": {1200: (20, [*MASKS[:1], *MASKS[2::2]])},
}
"""By data set, and samples of the training part: epochs, and what is measured."""
EVERY = (800, 1200)
"""All that `synthetic` and the images have to train on."""
BATCH = {"synthetic": 50, "alike": 50, "images": 60}
DRAWS = 100
LEVEL = 0.9
Cell = dict[str, Any]


def main() -> int:
    """The exit code: 0, or 130 when stopped."""
    arguments = _arguments()
    torch.set_num_threads(1)
    cells: list[Cell] = json.loads(arguments.json.read_text())["cells"] if arguments.json.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        source = f"{EXAMPLE}:{arguments.set}"
        if arguments.set == "images":
            source = str(Path(folder) / "views.npz")
            runpy.run_path(str(EXAMPLE))["write_views"](arguments.data, source)
        for wanted, epochs in order(arguments.set, arguments.seeds):
            if any(wanted.items() <= cell.items() for cell in cells):
                continue
            try:
                with tempfile.TemporaryDirectory() as out:
                    cell = {**wanted, **measure(recipe_of(wanted, source, epochs), Path(out) / "run")}
            except Interrupted:
                return 130
            print(json.dumps(cell), flush=True)
            cells.append(cell)
            write_atomically(arguments.json, encoded(cells))
    for lines in (table(cells, arguments.set), intervals(cells, arguments.set)):
        print("\n".join(lines) + "\n")
    return 0


def order(name: str, seeds: Sequence[int]) -> Iterator[tuple[Cell, int]]:
    """Cells of a data set, row by row of the table, with their epochs."""
    for samples, (epochs, masks) in SAMPLES[name].items():
        for pattern, sparsity in masks:
            for seed in seeds:
                for model in MODELS:
                    cell = {
                        "data": name,
                        "samples": samples,
                        "model": model,
                        "pattern": pattern,
                        "sparsity": sparsity,
                        "seed": seed,
                    }
                    yield cell, epochs


def recipe_of(cell: Mapping[str, Any], source: str, epochs: int) -> Recipe:
    """The recipe of a cell: the same steps, learning rates and loss for all models."""
    dense = cell["pattern"] == "dense"
    how = {"method": "dense"} if dense else {"pattern": cell["pattern"], "sparsity": cell["sparsity"]}
    keys = {
        "model": f"{EXAMPLE}:{cell['model']}{'_images' if cell['data'] == 'images' else ''}",
        "data": source,
        "train_samples": None if cell["samples"] in EVERY else cell["samples"],
        "task": "regression",
        "loss": f"{EXAMPLE}:loss",
        "epochs": epochs,
        "optimizer": "adamw",
        "lr": 0.002,
        "weight_decay": 0.01,
        "warmup": 20,
        "threads": 1,
        "seed": cell["seed"],
        "checkpoint_every": 10**6,
        "batch_size": BATCH[cell["data"]],
        **how,
    }
    return parse_recipe(None, keys)


def measure(recipe: Recipe, out: Path) -> Cell:
    """Run a recipe, and its file.

    Returns:
        r2, coverage and width of the intervals in the file; drawn_coverage and drawn_width of intervals of `DRAWS` draws; density, bytes,
        parity (as a share of what is allowed), random (operators in the file that draw), seconds.
    """
    started = time.process_time()
    report = run(recipe, out, timed=False, rehearsed=True)["model"]
    data = load_data(recipe.data, seed=recipe.seed, train_samples=recipe.train_samples, task=recipe.task)
    outputs, wanted = run_file(out / "model.onnx", data.test), data.test.targets.double()
    file = onnx.load(out / "model.onnx")
    low, high = drawn(Program.load(out / "program.sparsify"), data)
    return {
        "r2": recipe.build_task().figures(outputs["prediction"], wanted)["r2"],
        "coverage": regression.coverage(wanted, outputs["lower"], outputs["upper"]),
        "width": regression.width(outputs["lower"], outputs["upper"]),
        "drawn_coverage": regression.coverage(wanted, low, high),
        "drawn_width": regression.width(low, high),
        "density": report["density"],
        "bytes": report["bytes"],
        "parity": report["parity"]["share"],
        "random": sum(node.op_type.startswith("Random") for node in file.graph.node),
        "seconds": round(time.process_time() - started, 1),
    }


def drawn(program: Program, data: Data) -> tuple[Tensor, Tensor]:
    """Bounds of a prediction from `DRAWS` passes of the train phase: mean ± 1.645 deviations.

    The variance of a pixel is that of the draws and that of its errors in the training part.
    """
    torch.manual_seed(0)
    every = torch.arange(len(data.train))
    with torch.no_grad():
        noise = (program.eval().call(data.train.batch(every).inputs)["prediction"] - data.train.targets).var(0)
        inputs = data.test.batch(torch.arange(len(data.test))).inputs
        program.train()
        total = squares = torch.zeros(())
        for _ in range(DRAWS):
            prediction = program.call(inputs)["prediction"].double()
            total, squares = total + prediction, squares + prediction**2
    mean = total / DRAWS
    reach = 1.645 * ((squares / DRAWS - mean**2).clamp(min=0) + noise).sqrt()
    return mean - reach, mean + reach


# --- what is printed


def table(cells: Sequence[Cell], name: str) -> Iterator[str]:
    """Markdown: R2 by what is measured and model, mean and deviation over seeds; differences are paired by seed, with the 95 % interval."""
    yield "| samples | pattern | sparsity | seeds | separate | joint | InVA | InVA - separate | InVA - joint |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for (samples, pattern, sparsity), by_model in _grouped(cells, name).items():
        values = {model: [cell["r2"] for cell in group] for model, group in by_model.items()}
        means = [f"{statistics.mean(values[m]):.3f}{_deviation(values[m])}" for m in MODELS]
        differences = [_difference(values["inva"], values[other]) for other in MODELS[:2]]
        yield f"| {samples} | {pattern} | {100 * sparsity:g} % | {len(values['inva'])} | {' | '.join([*means, *differences])} |"


def intervals(cells: Sequence[Cell], name: str) -> Iterator[str]:
    """Markdown: coverage and width of 90 % intervals of InVA, those in the file and those of draws, means over seeds."""
    yield "| samples | pattern | sparsity | in the file: coverage | width | of draws: coverage | width | bytes |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for (samples, pattern, sparsity), by_model in _grouped(cells, name).items():
        group = by_model["inva"]
        mean = {
            key: statistics.mean(cell[key] for cell in group)
            for key in ("coverage", "width", "drawn_coverage", "drawn_width", "bytes")
        }
        figures = [f"{mean[key]:.3f}" for key in ("coverage", "width", "drawn_coverage", "drawn_width")]
        yield f"| {samples} | {pattern} | {100 * sparsity:g} % | {' | '.join(figures)} | {mean['bytes']:,.0f} |"


def _grouped(cells: Sequence[Cell], name: str) -> dict[tuple[int, str, float], dict[str, list[Cell]]]:
    """Cells of a data set by what is measured and by model, of the seeds that all models have, in order."""
    by_key: dict[tuple[int, int, int], dict[str, Cell]] = {}
    for cell in cells:
        if cell["data"] == name:
            key = (cell["samples"], MASKS.index((cell["pattern"], cell["sparsity"])), cell["seed"])
            by_key.setdefault(key, {})[cell["model"]] = cell
    found: dict[tuple[int, str, float], dict[str, list[Cell]]] = {}
    for (samples, mask, _), by_model in sorted(by_key.items(), key=lambda item: item[0]):
        if by_model.keys() == {*MODELS}:
            group = found.setdefault((samples, *MASKS[mask]), {})
            for model, cell in by_model.items():
                group.setdefault(model, []).append(cell)
    return found


def _deviation(values: Sequence[float]) -> str:
    return f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""


def _difference(values: Sequence[float], others: Sequence[float]) -> str:
    found = paired_difference(values, others)
    interval = f" ({found.interval[0]:+.3f} to {found.interval[1]:+.3f})" if found.interval else ""
    return f"{found.mean:+.3f}{interval}"


def encoded(cells: Sequence[Cell]) -> bytes:
    """One cell per line, with the machine."""
    head = {"machine": dict(machine()), "torch": torch.__version__}
    lines = ",\n ".join(json.dumps(cell) for cell in cells)
    return (json.dumps(head)[:-1] + f', "cells": [\n {lines}\n]}}\n').encode()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("set", choices=list(SAMPLES))
    parser.add_argument("--data", type=Path, help="fashion_mnist.npz, for images")
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")], default=[0, 1, 2])
    parser.add_argument(
        "--json", type=Path, default=ROOT / "benchmarks" / "results" / "inva.json", help="where cells are kept"
    )
    arguments = parser.parse_args()
    if arguments.set == "images" and arguments.data is None:
        parser.error("images need --data FILE")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
