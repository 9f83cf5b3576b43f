"""Sparse methods against their bases and the dense model, on real data: the table of `sparsify compare`, and its JSON.

What is compared stands in recipes/compare_*.toml. Each cell is a run in a process of its own; a benchmark that was stopped or killed goes
on with --resume.

python benchmarks/methods.py [digits] [--cores 2] [--out runs/methods/digits] [--resume] [--json out.json]
python benchmarks/methods.py fashion_mnist --data fashion_mnist.npz
python benchmarks/methods.py cifar10 --data cifar10.npz --set train.epochs=10 --set grid.seeds=0,1,2
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from sparsify.errors import SparsifyError
from sparsify.files import write_atomically
from sparsify.reports.latency import machine
from sparsify.runs.comparison import Comparison, available, run_grid
from sparsify.runs.grid import parse_grid
from sparsify.terminal.progress import grid_bars
from sparsify.training import Interrupted

ROOT = Path(__file__).parents[1]
MODELS = {"fashion_mnist": "examples/fashion_mnist.py:cnn", "cifar10": "examples/cifar.py:resnet20"}


def main() -> int:
    """The exit code: 0 when every cell has a result, 1 when some failed, 2 for what cannot be run, 130 when stopped."""
    arguments = _arguments()
    try:
        found = measure(arguments)
    except Interrupted as stop:
        print(f"{stop} Go on with --resume.", file=sys.stderr)
        return 130
    except SparsifyError as error:
        print(error, file=sys.stderr)
        return 2
    print((arguments.out / "compare.md").read_text())
    if arguments.json:
        write_atomically(arguments.json, shortened(json.loads((arguments.out / "compare.json").read_text()), found))
    return 1 if found.failures else 0


def shortened(content: dict[str, Any], found: Comparison) -> bytes:
    """The figures of the table alone, a row or cell a line, with the machine; files by name."""
    keys = found.summary.shown()
    for part in ("rows", "cells"):
        for entry in content[part]:
            entry["figures"] = {key: entry["figures"][key] for key in keys if key in entry["figures"]}
    grid = content["grid"]
    grid |= {"data": Path(grid["data"]).name, "ood": [Path(text).name for text in grid["ood"]]}
    grid["model"] = "/".join(Path(grid["model"]).parts[-2:])
    parts = {"machine": dict(machine()), "torch": torch.__version__, **content}
    lines = (
        f'"{key}": [\n ' + ",\n ".join(map(json.dumps, value)) + "\n]"
        if key in ("rows", "cells")
        else f'"{key}": {json.dumps(value)}'
        for key, value in parts.items()
    )
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def measure(arguments: argparse.Namespace) -> Comparison:
    """Run the grid of the benchmark's recipe."""
    pairs = list(arguments.set)
    if arguments.name in MODELS:
        pairs.append(f"model={ROOT / MODELS[arguments.name]}")
    if arguments.data:
        pairs.append(f"data={arguments.data}")
    grid = parse_grid(ROOT / "recipes" / f"compare_{arguments.name}.toml", pairs)
    with grid_bars(len(grid.cells())) as (on_event, on_decode):
        return run_grid(
            grid, arguments.out, cores=arguments.cores, resume=arguments.resume, on_event=on_event, on_decode=on_decode
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="?", default="digits", choices=["digits", *MODELS])
    parser.add_argument("--data", help="the file; digits need none")
    parser.add_argument("--cores", type=int, default=available(), help="cores to keep busy; a cell takes one")
    parser.add_argument("--out", type=Path, help="folder of the grid; runs/methods/NAME unless given")
    parser.add_argument(
        "--set", action="append", default=[], help="key=value of the recipe, or grid.seeds=0,1; repeatable"
    )
    parser.add_argument("--resume", action="store_true", help="go on with what is in the folder")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    if arguments.name in MODELS and not arguments.data:
        parser.error(f"{arguments.name} needs --data FILE")
    arguments.out = arguments.out or Path("runs/methods") / arguments.name
    return arguments


if __name__ == "__main__":
    sys.exit(main())
