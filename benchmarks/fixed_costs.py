"""What sparsify costs apart from training: verify, text, attach and a round by the number of layers, trace, export, start-up.

Nets of N square linear layers. `attach` and a RigL round are held against the bare tensor work of the same, written below in plain
torch: ranking and masking all weights, and dropping, growing and masking by the gradient. CPU seconds of one thread, the least of
three; a process of its own for start-up. Only the public interface is used, so that older checkouts can be measured too.

python benchmarks/fixed_costs.py [--layers 64 128 256 512] [--json out.json --label after]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import sparsify as sp

REPEATS = 3
DENSITY, DROPPED = 0.1, 0.3
EVERY, ROUNDS = 2, 5
"""Steps between two rounds, and how many rounds are made: every second step makes one. A round is the median step that makes one less
the median step that does not."""


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def net(layers: int, width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))


def bare_attach(weights: list[Tensor]) -> list[Tensor]:
    """Random masks of all layers, and the weights masked."""
    masks = []
    for weight in weights:
        mask = torch.zeros(weight.numel(), dtype=torch.bool)
        mask[torch.rand(weight.numel()).topk(round(DENSITY * weight.numel())).indices] = True
        weight.mul_(mask.view_as(weight))
        masks.append(mask.view_as(weight))
    return masks


def bare_round(weights: list[Tensor], masks: list[Tensor], gradients: list[Tensor]) -> None:
    """The smallest active weights of each layer dropped, as many grown by the gradient, and the weights masked."""
    for weight, mask, gradient in zip(weights, masks, gradients, strict=True):
        count = round(DROPPED * int(mask.count_nonzero()))
        flat = mask.view(-1)
        dropped = weight.abs().masked_fill(~mask, torch.inf).view(-1).topk(count, largest=False).indices
        grown = gradient.abs().masked_fill(mask, -1.0).view(-1).topk(count).indices
        flat[dropped], flat[grown] = False, True
        weight.mul_(mask)


def by_layers(layers: int, width: int) -> dict[str, float]:
    """CPU seconds at one size; each the least of `REPEATS`, of a program traced once and masked anew each time."""
    x = torch.randn(4, width)
    program = sp.trace(net(layers, width), (x,))
    found: dict[str, list[float]] = {}
    for _ in range(REPEATS):
        copy = program.clone()
        optimizer = torch.optim.SGD(copy.parameters(), lr=0.0)
        trainers: list[sp.SparseTrainer] = []
        method = sp.methods.rigl(density=DENSITY, update_every=EVERY)
        work = {"attach": lambda: trainers.append(sp.attach(method, copy, optimizer, total_steps=100))}  # ruff: ignore[function-uses-loop-variable]
        found.setdefault("attach", []).append(seconds(work["attach"]))
        steps = list[float]()
        for _ in range(EVERY * ROUNDS + 1):
            copy(x).square().sum().backward()
            steps.append(seconds(trainers[0].step))
            optimizer.zero_grad()
        plain = statistics.median(steps[EVERY::EVERY])  # the first step, which sets up the optimizer, is in neither
        found.setdefault("round", []).append(statistics.median(steps[EVERY - 1 :: EVERY]) - plain)
        found.setdefault("verify", []).append(seconds(copy.verify))
        found.setdefault("text", []).append(seconds(copy.text))
        weights = [torch.randn(width, width) for _ in range(layers)]
        gradients = [torch.randn(width, width) for _ in range(layers)]
        masks: list[Tensor] = []
        found.setdefault("attach, tensor work", []).append(seconds(lambda: masks.extend(bare_attach(weights))))  # ruff: ignore[function-uses-loop-variable]
        found.setdefault("round, tensor work", []).append(seconds(lambda: bare_round(weights, masks, gradients)))  # ruff: ignore[function-uses-loop-variable]
    return {name: round(min(values), 5) for name, values in found.items()}


def process(*arguments: str) -> float:
    """CPU seconds of a Python process, the least of three."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    return round(min(once() for _ in range(REPEATS)), 3)


def small_net() -> dict[str, float]:
    """Trace and export of a small convolutional net, after one of each to warm up."""
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    x, found = torch.randn(4, 1, 8, 8), dict[str, float]()
    with tempfile.TemporaryDirectory() as folder:
        for index in range(2):
            programs: list[sp.Program] = []
            found["trace of a small net"] = round(seconds(lambda: programs.append(sp.trace(model, (x,)))), 3)  # ruff: ignore[function-uses-loop-variable]
            masked = sp.Pipeline.parse("insert-masks{density=0.5}")(programs[0])
            path = Path(folder) / f"{index}.onnx"
            found["export of a small net"] = round(seconds(lambda: sp.export(masked, path, inputs=(x,))), 3)  # ruff: ignore[function-uses-loop-variable]
    return found


def machine() -> dict[str, object]:
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 256])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--label", default="after", help="the name of these figures in the file; others there are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    by_layers(2, 16)  # what is imported at the first call is in no figure
    figures: dict[str, object] = {"machine": machine()}
    for width in options.widths:
        figures[f"layers of {width} x {width}"] = {str(n): by_layers(n, width) for n in options.layers}
    figures |= small_net()
    figures["sparsify --help"] = process("-m", "sparsify", "--help")
    figures["import sparsify"] = process("-c", "import sparsify")
    print(json.dumps(figures, indent=1))
    if options.json:
        kept = json.loads(options.json.read_text()) if options.json.exists() else {}
        options.json.write_text(json.dumps({**kept, options.label: figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
