"""What a masked training step costs: RigL at 90 % against the dense step of the same eager model.

Steps run interleaved in one process, in blocks: eager dense, the same with SGD's fused implementation (``fused=True``), traced without
masks, RigL (topology updates every 100 steps included). The trainer lets SGD use that implementation, which a plain loop has to ask for.
Reported are medians over rounds of per-round ratios, the ratio of the fastest blocks, which other processes of the machine disturb least,
and what the masked step spends where. Peak memory is measured in a process of its own for each variant, as the resident peak during the
steps over the resident size before the model was built (Linux). Every process, the eager one too, first traces a model of one layer, so
that the code of torch.export, which is imported once a process, is in no figure; freed memory is returned to the system before the steps,
because tracing is not training. glibc is told to map every allocation over 256 KiB, so that the resident size is what is allocated and not
what the allocator keeps (that moved the figure by 10 % between equal runs).

python benchmarks/step_cost.py [--threads 2] [--rounds 20] [--data cifar10.npz] [--json out.json] [--model mlp-256]
Without --data, images are scikit-learn's digits, enlarged; the cost does not depend on the pixels.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import sparsify as sp

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from cifar import resnet20

BATCH = 128
STEPS = {"resnet20": 5, "mlp": 25, "mlp-256": 100}
VARIANTS = ("eager", "fused", "traced", "rigl")


def mlp() -> nn.Module:
    """Four linear layers, 1024 wide."""
    layers = [nn.Flatten(), nn.Linear(3072, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))


def small_mlp() -> nn.Module:
    """Three hidden layers, 256 wide, for images of 8 x 8: what a step costs here is Python more than arithmetic."""
    layers = [nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


MODELS: dict[str, Callable[[], nn.Module]] = {"resnet20": resnet20, "mlp": mlp, "mlp-256": small_mlp}


def batch(data: str | None) -> tuple[Tensor, Tensor]:
    """128 images [128, 3, 32, 32] and labels."""
    if data:
        from sparsify.loading import load_data

        return load_data(data, seed=0).test.batch(torch.arange(BATCH))
    digits = load_digits()
    x = torch.tensor(digits.images[:BATCH], dtype=torch.float32)[:, None] / 16
    return nn.functional.interpolate(x, size=32).expand(-1, 3, -1, -1).contiguous(), torch.tensor(digits.target[:BATCH])


def fitted(name: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The batch as a model takes it: 64 images [64, 1, 8, 8] for ``mlp-256``."""
    return (x[:64, :1, ::4, ::4].contiguous(), y[:64]) if name == "mlp-256" else (x, y)


def make_step(variant: str, name: str, x: Tensor, y: Tensor) -> tuple[Callable[[], None], dict[str, float]]:
    """One training step of a variant, and the seconds it has spent by part."""
    torch.manual_seed(0)
    x, y = fitted(name, x, y)
    model = MODELS[name]().train()
    fused = True if variant == "fused" else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=fused)
    callee: nn.Module = model if variant in ("eager", "fused") else sp.trace(model, (x[:2],)).train()
    advance = optimizer.step
    if variant == "rigl":
        advance = sp.attach(sp.methods.rigl(density=0.1), callee, optimizer, total_steps=1_000_000).step
    spent = {"forward": 0.0, "backward": 0.0, "step": 0.0}

    def step() -> None:
        start = time.perf_counter()
        loss = nn.functional.cross_entropy(callee(x), y)
        forward = time.perf_counter()
        loss.backward()
        backward = time.perf_counter()
        advance()
        optimizer.zero_grad()
        end = time.perf_counter()
        for part, seconds in (("forward", forward - start), ("backward", backward - forward), ("step", end - backward)):
            spent[part] += seconds

    return step, spent


def timings(name: str, x: Tensor, y: Tensor, rounds: int) -> dict[str, object]:
    """Ratios of medians for one model; enough rounds that topology updates occur at their true rate."""
    steps = {variant: make_step(variant, name, x, y) for variant in VARIANTS}
    for step, spent in steps.values():
        for _ in range(3):
            step()
        spent.update(dict.fromkeys(spent, 0.0))
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    busy: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for index in range(rounds):
        order = VARIANTS[index % len(VARIANTS) :] + VARIANTS[: index % len(VARIANTS)]
        for variant in order:
            start, began = time.perf_counter(), time.process_time()
            for _ in range(STEPS[name]):
                steps[variant][0]()
            busy[variant].append(time.process_time() - began)
            seconds[variant].append((time.perf_counter() - start) / STEPS[name])
    ratios = {v: [a / b for a, b in zip(seconds[v], seconds["eager"], strict=True)] for v in VARIANTS[1:]}
    total = rounds * STEPS[name]
    return {
        "milliseconds_eager": 1000 * statistics.median(seconds["eager"]),
        "fused_ratio": statistics.median(ratios["fused"]),
        "traced_ratio": statistics.median(ratios["traced"]),
        "rigl_ratio": statistics.median(ratios["rigl"]),
        "rigl_ratio_to_fused": statistics.median(a / b for a, b in zip(seconds["rigl"], seconds["fused"], strict=True)),
        "rigl_ratio_of_cpu_time": statistics.median(a / b for a, b in zip(busy["rigl"], busy["eager"], strict=True)),
        "rigl_ratio_of_totals": sum(seconds["rigl"]) / sum(seconds["eager"]),
        "rigl_ratio_of_fastest": min(seconds["rigl"]) / min(seconds["eager"]),
        "rigl_quartiles": statistics.quantiles(ratios["rigl"], n=4),
        "steps": total,
        "milliseconds_by_part": {
            v: {part: round(1000 * value / total, 3) for part, value in steps[v][1].items()} for v in VARIANTS
        },
    }


def peak(variant: str, name: str, data: str | None, threads: int) -> int:
    """Growth in KiB of the resident peak over 105 steps (one topology update included), measured in a new process."""
    command = [sys.executable, __file__, "--peak", variant, "--model", name, "--threads", str(threads)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 18)}
    result = subprocess.run(
        command + (["--data", data] if data else []), check=True, capture_output=True, text=True, env=environment
    )
    return int(result.stdout.split()[-1])


def resident(field: str) -> int:
    """A memory figure of this process in KiB (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def machine() -> str:
    """The processor by name (Linux), or its architecture."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def release() -> None:
    """Return freed memory to the system (glibc)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--data")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--peak", choices=VARIANTS, help="internal: print the peak of one variant")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    x, y = batch(options.data)
    if options.peak:
        sp.trace(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), (x[:2],))
        release()
        before = resident("VmRSS")
        step, _ = make_step(options.peak, options.model, x, y)
        step()
        release()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again here
        for _ in range(104):
            step()
        print(resident("VmHWM") - before)
        return
    report: dict[str, object] = {"machine": machine(), "threads": options.threads}
    print(json.dumps(report))
    for name in [options.model] if options.model else MODELS:
        row = timings(name, x, y, options.rounds)
        peaks = {variant: peak(variant, name, options.data, options.threads) for variant in VARIANTS}
        row["peak_kib"] = peaks
        row["peak_ratio"] = peaks["rigl"] / peaks["eager"]
        report[name] = row
        print(name, json.dumps(row, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
