"""What it costs to step active weights only: the whole training step of an MLP, against the step with dense optimizer state.

Both variants train the same unstructured masks (`attach(..., compact="always")` and ``"never"``), interleaved in one process. The
crossings of AdamW are the constants of `sparsify.training.active_steps`; the rows of SGD show why its active positions are stepped only
when asked for.

python benchmarks/active_steps.py [--threads 1] [--rounds 15] [--json out.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn

import sparsify as sp

sys.path.insert(0, str(Path(__file__).parent))
from step_cost import machine

OPTIMIZERS: dict[str, Callable[[Iterable[Any]], torch.optim.Optimizer]] = {
    "SGD": lambda weights: torch.optim.SGD(weights, lr=0.01),
    "SGD, momentum": lambda weights: torch.optim.SGD(weights, lr=0.01, momentum=0.9, weight_decay=5e-4),
    "AdamW": lambda weights: torch.optim.AdamW(weights, lr=1e-3),
}
WIDTHS = (96, 256, 384, 512, 1024)
DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5)
STEPS = 40


def stepper(compact: str, optimizer: str, width: int, density: float) -> Callable[[], None]:
    """Return a function that makes one step of an MLP with two masked layers [width, width] on 64 digits."""
    torch.manual_seed(0)
    data, target = load_digits(return_X_y=True)
    x, y = torch.tensor(data[:64], dtype=torch.float32) / 16, torch.tensor(target[:64])
    layers = [nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    program = sp.trace(nn.Sequential(*layers, nn.Linear(width, 10)), (x[:2],)).train()
    held = OPTIMIZERS[optimizer](program.parameters())
    method = sp.methods.static_random(density=density, keep_dense=("0.weight", "6.weight"))
    trainer = sp.attach(method, program, held, total_steps=1_000_000, compact=compact)  # type: ignore[arg-type]

    def step() -> None:
        nn.functional.cross_entropy(program(x), y).backward()
        trainer.step()
        held.zero_grad()

    return step


def ratio(optimizer: str, width: int, density: float, rounds: int) -> float:
    """Return the median, over rounds, of the time of a step with active state over that with dense state."""
    steps = [stepper(compact, optimizer, width, density) for compact in ("always", "never")]
    for step in steps:
        for _ in range(3):
            step()
    found = []
    for index in range(rounds):
        seconds = [0.0, 0.0]
        for which in (0, 1) if index % 2 else (1, 0):
            start = time.perf_counter()
            for _ in range(STEPS):
                steps[which]()
            seconds[which] = time.perf_counter() - start
        found.append(seconds[0] / seconds[1])
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {"machine": machine(), "threads": options.threads, "ratios": {}}
    print(f"{report['machine']}, {options.threads} thread(s): step with active state / step with dense state")
    for optimizer in OPTIMIZERS:
        print(f"\n{optimizer:16}" + "".join(f"{density:>8}" for density in DENSITIES))
        for width in WIDTHS:
            row = [ratio(optimizer, width, density, options.rounds) for density in DENSITIES]
            report["ratios"][f"{optimizer} {width}"] = row
            print(f"{width:>8} wide   " + "".join(f"{value:8.2f}" for value in row), flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
