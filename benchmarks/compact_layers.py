"""What a step of two equal layers costs compact against masked, for the constants of `sparsify.parts.compact_times`.

Steps of both forms run in turn in one process, with `trainer.step` and SGD with momentum, one thread; figures are medians of CPU time in
microseconds, and their ratio. Only times are read, so inputs are random. A line also says what the cost model predicts.

python benchmarks/compact_layers.py [--kinds linear conv] [--seconds 0.8]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import sparsify as sp
from sparsify.errors import SparsifyError
from sparsify.parts.allocation import uniform

LINEAR = ((64, 128, 256, 512), (16, 64, 512, 4096), (0.1, 0.25, 0.5), (16, 64))
"""Widths, rows, densities, outputs per group."""
CONV = ((32, 64, 128), (4, 8, 16, 32), (8, 64), (0.125, 0.25, 0.5), (16, 64))
"""Channels, sizes of the picture, batches, densities, outputs per group."""
LARGEST = {"linear": 512 * 4096, "conv": 64 * 32 * 32 * 8}
"""Values of the largest input that is tried."""


def step_of(
    model: nn.Module, x: Tensor, density: float, group: int, form: str
) -> tuple[Callable[[], float], dict[str, str]]:
    """Return a function that takes a training step and returns its CPU seconds, and how weights are stored."""
    program = sp.trace(model, (x[:2],)).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.001, momentum=0.9)
    method = sp.methods.static_random(density=density, pattern=f"grouped:{group}", allocation=uniform)
    trainer = sp.attach(method, program, optimizer, total_steps=10**6, compact=form)  # type: ignore[arg-type]

    def step() -> float:
        start = time.process_time()
        program(x).square().mean().backward()
        trainer.step()
        optimizer.zero_grad()
        return time.process_time() - start

    return step, trainer.forms


def measured(build: Callable[[], nn.Module], x: Tensor, density: float, group: int, seconds: float) -> str:
    """Return medians of a masked and of a compact step in microseconds, their ratio, and the form that training would take."""
    forms = {form: step_of(build(), x, density, group, form) for form in ("never", "always", "auto")}
    times: dict[str, list[float]] = {"never": [], "always": []}
    begin = time.perf_counter()
    while len(times["never"]) < 8 or (time.perf_counter() - begin < seconds and len(times["never"]) < 60):
        for form, kept in times.items():
            kept.append(forms[form][0]())
    masked, compact = (1e6 * statistics.median(kept[2:]) for kept in times.values())
    chosen = {text.split()[0].rstrip(":") for text in forms["auto"][1].values()}
    return f"{masked:.0f} {compact:.0f} {compact / masked:.2f} {' '.join(sorted(chosen))}"


def settings(kind: str) -> Iterator[tuple[tuple[Any, ...], Callable[[], nn.Module], Tensor, float, int]]:
    """Yield each setting with its two layers, their input, the density and the group."""
    for setting in itertools.product(*(LINEAR if kind == "linear" else CONV)):
        width, (density, group) = setting[0], setting[-2:]
        shape = (setting[1], width) if kind == "linear" else (setting[2], width, setting[1], setting[1])
        if torch.Size(shape).numel() <= LARGEST[kind] and group <= width:
            yield setting, lambda width=width: two(kind, width), torch.randn(shape), density, group


def two(kind: str, width: int) -> nn.Module:
    """Two equal layers."""
    pair = [nn.Linear(width, width) if kind == "linear" else nn.Conv2d(width, width, 3, padding=1) for _ in range(2)]
    return nn.Sequential(nn.ReLU(), pair[0], nn.ReLU(), pair[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=("linear", "conv"), default=["linear", "conv"])
    parser.add_argument("--seconds", type=float, default=0.8, help="per setting")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for kind in options.kinds:
        for setting, build, x, density, group in settings(kind):
            try:
                print(kind, *setting, measured(build, x, density, group, options.seconds), flush=True)
            except SparsifyError as error:
                print(kind, *setting, f"left out: {error}", flush=True)


if __name__ == "__main__":
    main()
