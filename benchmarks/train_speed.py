"""What a training step costs dense, masked, compact, and in a narrower dense network of as many multiply-accumulates.

A step is forward, backward, `trainer.step` with the rounds of RigL at their rate (one in 100 steps), and `zero_grad`; SGD with momentum.
Networks are dense, masked (`compact="never"`), compact (`compact="auto"`, what training does by itself) and narrower. Their steps run in
turn in one process; a figure is the median over rounds of the ratio of CPU times to the dense step of that round. `held` is the memory of
weights, gradients and optimizer state before `zero_grad`, as a share of the dense network's. Rounds are timed apart, as they are rare, and
added at their rate. An allocation shares the active weights out among the layers: `erk`, the default of RigL, keeps more of small layers,
which in a convolutional network have the large pictures, so that it multiplies more than `uniform` at the same sparsity. Settings that
no mask can have are named and left out.

python benchmarks/train_speed.py --allocations uniform --seconds 6      # every network, group and batch
python benchmarks/train_speed.py --networks mlp vit --groups 64 --sparsities 0.9 --batches small
python benchmarks/train_speed.py --groups 64 --show                      # prints the stored rows of these options
python benchmarks/train_speed.py --show --plot docs/assets/train_speed.svg
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import sparsify as sp
from sparsify.errors import SparsifyError
from sparsify.files import write_atomically
from sparsify.pages.plots import canvas, shade, svg
from sparsify.parts.allocation import ALLOCATIONS
from sparsify.reports.latency import machine

sys.path.insert(0, str(Path(__file__).parent))
from networks import Encoder, Residual, conv, scaled

RESULTS = Path(__file__).parent / "results" / "train_speed.json"
VARIANTS = ("dense", "masked", "compact", "narrower")
UPDATE_EVERY = 100
CHARACTERS, LENGTH = 128, 64


class MLP(nn.Module):
    """Four linear layers of 1024 over images of 32 x 32 pixels, and ten outputs."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        hidden = scaled(1024, width)
        sizes = [1024, *[hidden] * 4]
        pairs = itertools.pairwise(sizes)
        self.body = nn.Sequential(*(layer for a, b in pairs for layer in (nn.Linear(a, b), nn.ReLU())))
        self.head = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.flatten(1)))


class SmallResNet(nn.Module):
    """A ResNet for images of 32 x 32 pixels: a 3 x 3 stem, four stages of 64 to 512 inner channels."""

    def __init__(self, blocks: tuple[int, ...], expansion: int, width: float = 1.0) -> None:
        super().__init__()
        channels = scaled(64, width)
        self.stem, layers = conv(1, channels, 3), list[nn.Module]()
        for stage, count in enumerate(blocks):
            inner = scaled(64 * 2**stage, width)
            for place in range(count):
                layers.append(Residual(channels, inner, inner * expansion, 2 if stage and place == 0 else 1))
                channels = inner * expansion
        self.body, self.head = nn.Sequential(*layers), nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(torch.relu(self.stem(x))).mean((2, 3)))


class SmallViT(nn.Module):
    """Four blocks of width 384 over 64 patches of 4 x 4 pixels."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        heads = max(1, round(6 * width))
        self.embed = nn.Linear(16, 64 * heads)
        self.blocks = nn.Sequential(*(Encoder(64 * heads, heads) for _ in range(4)))
        self.head = nn.Linear(64 * heads, 10)

    def forward(self, x: Tensor) -> Tensor:
        patches = x.unfold(2, 4, 4).unfold(3, 4, 4).flatten(1, 3).flatten(2)
        return self.head(self.blocks(self.embed(patches)).mean(1))


class Characters(nn.Module):
    """Four blocks of width 256 over 64 characters; predicts the next character at each place."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        heads = max(1, round(4 * width))
        self.table = nn.Embedding(CHARACTERS, 64 * heads)
        self.blocks = nn.Sequential(*(Encoder(64 * heads, heads) for _ in range(4)))
        self.head = nn.Linear(64 * heads, CHARACTERS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.table(x))).transpose(1, 2)


@dataclass(frozen=True)
class Network:
    """A network of a relative width, the weights that stay dense, and the sizes of a small and a large batch."""

    build: Callable[[float], nn.Module]
    dense: tuple[str, ...]
    batches: tuple[int, int]


NETWORKS = {
    "mlp": Network(MLP, ("head.weight",), (64, 256)),
    "resnet18": Network(lambda width: SmallResNet((2, 2, 2, 2), 1, width), ("stem.*", "head.weight"), (8, 32)),
    "resnet50": Network(lambda width: SmallResNet((3, 4, 6, 3), 4, width), ("stem.*", "head.weight"), (4, 16)),
    "vit": Network(SmallViT, ("embed.weight", "head.weight"), (16, 64)),
    "characters": Network(Characters, ("head.weight",), (16, 64)),
}


def batch(name: str, size: int) -> tuple[Tensor, Tensor]:
    """Digits of scikit-learn, enlarged to 32 x 32 pixels, and their labels; for characters, Python's own text and its next characters."""
    if name == "characters":
        text = torch.tensor([min(byte, CHARACTERS - 1) for byte in inspect.getsource(argparse).encode()])
        places = torch.arange(size).unsqueeze(1) * LENGTH + torch.arange(LENGTH)
        return text[places], text[places + 1]
    digits = load_digits()
    images = torch.tensor(digits.images[:size], dtype=torch.float32)[:, None] / 16
    return nn.functional.interpolate(images, size=32), torch.tensor(digits.target[:size])


@dataclass
class Run:
    """A network in training."""

    callee: nn.Module
    optimizer: torch.optim.Optimizer
    advance: Callable[[], Any]
    forms: dict[str, str]

    def step(self, x: Tensor, y: Tensor) -> float:
        """Take a step; returns its CPU seconds."""
        start = time.process_time()
        nn.functional.cross_entropy(self.callee(x), y).backward()
        self.advance()
        self.optimizer.zero_grad()
        return time.process_time() - start

    def held(self, x: Tensor, y: Tensor) -> int:
        """Bytes of weights, gradients and optimizer state before ``zero_grad``."""
        nn.functional.cross_entropy(self.callee(x), y).backward()
        self.advance()
        total = 0
        for parameter in self.callee.parameters():
            state = [v for v in self.optimizer.state[parameter].values() if isinstance(v, Tensor)]
            values = [parameter, *state, *([] if parameter.grad is None else [parameter.grad])]
            total += sum(value.numel() * value.element_size() for value in values)
        self.optimizer.zero_grad()
        return total


def plain(name: str, width: float) -> Run:
    """Set a dense network up."""
    torch.manual_seed(0)
    model = NETWORKS[name].build(width).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    return Run(model, optimizer, optimizer.step, {})


def sparse(variant: str, name: str, x: Tensor, setting: Mapping[str, Any], updates: int = UPDATE_EVERY) -> Run:
    """Set a masked or compact network up; ``updates``: steps between rounds."""
    torch.manual_seed(0)
    network = NETWORKS[name]
    model = network.build(1.0).train()
    program = sp.trace(model, (x[:2],)).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    method = sp.methods.rigl(
        density=round(1 - setting["sparsity"], 6), pattern=f"grouped:{setting['group']}", keep_dense=network.dense,
        allocation=ALLOCATIONS[setting["allocation"]], update_every=updates, stop_at=10**6,
    )  # fmt: skip
    compact = "auto" if variant == "compact" else "never"
    trainer = sp.attach(method, program, optimizer, total_steps=10**6, compact=compact)
    return Run(program, optimizer, trainer.step, trainer.forms)


def measured(setting: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Ratios of all variants to the dense network for one setting.

    Raises:
        SparsifyError: If no mask has the sparsity, groups and allocation of the setting.
    """
    name = setting["network"]
    x, y = batch(name, setting["batch"])
    runs = {
        "dense": plain(name, 1.0),
        **{variant: sparse(variant, name, x, setting) for variant in ("masked", "compact")},
    }
    costs = cast(sp.Program, runs["masked"].callee).costs()
    share = costs.macs_active / costs.macs_dense
    runs["narrower"] = plain(name, share**0.5)
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for run in runs.values():
        run.step(x, y)
    begin = time.perf_counter()
    while len(times["dense"]) < 5 or time.perf_counter() - begin < seconds:
        for variant, run in runs.items():
            times[variant].append(run.step(x, y))
        if len(times["dense"]) == UPDATE_EVERY - 3:
            break  # the next steps have rounds, which are timed below
    held = {variant: run.held(x, y) for variant, run in runs.items()}
    forms = runs["compact"].forms
    dense = statistics.median(times["dense"])
    ratios = {v: statistics.median(a / b for a, b in zip(t, times["dense"], strict=True)) for v, t in times.items()}
    for variant in ("masked", "compact"):
        rounds = sparse(variant, name, x, setting, updates=2)
        pairs = [(rounds.step(x, y), rounds.step(x, y)) for _ in range(4)][1:]
        extra = max(0.0, statistics.median(second - first for first, second in pairs))
        ratios[variant] += extra / UPDATE_EVERY / dense
    return {
        **setting, "threads": torch.get_num_threads(), "macs": share, "milliseconds_dense": 1000 * dense,
        "steps": len(times["dense"]), "ratio": ratios,
        "held": {variant: count / held["dense"] for variant, count in held.items()},
        "compact_weights": sum(form.startswith("compact") for form in forms.values()), "masked_weights": len(forms),
    }  # fmt: skip


def stored(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["rows"] if path.exists() else []


def all_settings(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The settings that the options name, small batches first."""
    names = ("network", "batch", "sparsity", "group", "allocation")
    found = []
    for which in options.batches:
        for network in options.networks:
            sizes = [NETWORKS[network].batches[which == "large"]]
            chosen = itertools.product([network], sizes, options.sparsities, options.groups, options.allocations)
            found += [dict(zip(names, values, strict=True)) for values in chosen]
    return found


def rows_of(rows: list[dict[str, Any]], settings: list[dict[str, Any]], threads: int) -> list[dict[str, Any]]:
    """The rows of settings, in their order."""
    asked = [{**setting, "threads": threads} for setting in settings]
    return [row for setting in asked for row in rows if setting.items() <= row.items()]


def plot(rows: list[dict[str, Any]], path: Path, *, group: int = 64, allocation: str = "uniform") -> None:
    """Step times against sparsity as SVG, with one panel per network: small batches, one thread."""
    looks = {"masked": "o:", "compact": "o-", "narrower": "o--"}
    kept = [row for row in rows if (row["group"], row["allocation"], row["threads"]) == (group, allocation, 1)]
    kept = [row for row in kept if row["batch"] == NETWORKS[row["network"]].batches[0]]
    names = [name for name in NETWORKS if any(row["network"] == name for row in kept)]
    with canvas(2.8) as figure:
        axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for axis, name in zip(axes, names, strict=True):
            mine = sorted((row for row in kept if row["network"] == name), key=lambda row: row["sparsity"])
            sparsities = [100 * row["sparsity"] for row in mine]
            for place, (variant, look) in enumerate(looks.items()):
                colour = shade(place / len(looks))
                values = [row["ratio"][variant] for row in mine]
                axis.plot(sparsities, values, look, label=variant, color=colour, markersize=4)
            axis.set(title=name, xlabel="sparsity, %", ylim=(0, None))
        axes[0].set(ylabel="step, beside dense")
        axes[0].legend(fontsize=8)
        text = svg(figure, f"Time of a training step beside the dense one, of {', '.join(names)}.", "train_speed")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


def table(rows: list[dict[str, Any]]) -> str:
    """A line per setting."""
    heads = (
        "network",
        "batch",
        "sparsity",
        "o",
        "allocation",
        "threads",
        "dense step, ms",
        "MACs",
        "masked",
        "compact",
    )
    heads = (*heads, "narrower dense of equal MACs", "held, compact", "compact weights")
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for row in rows:
        ratio = row["ratio"]
        figures = (f"{ratio[variant]:.2f}" for variant in VARIANTS[1:])
        cells = (
            row["network"], row["batch"], f"{100 * row['sparsity']:g} %", row["group"], row["allocation"], row["threads"],
            f"{row['milliseconds_dense']:.3g}", f"{row['macs']:.2f}", *figures, f"{row['held']['compact']:.2f}",
            f"{row['compact_weights']} of {row['masked_weights']}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.8, 0.9, 0.95])
    parser.add_argument("--groups", nargs="+", type=int, default=[32, 64, 128])
    parser.add_argument("--batches", nargs="+", choices=("small", "large"), default=["small", "large"])
    parser.add_argument("--allocations", nargs="+", choices=ALLOCATIONS, default=["erk", "uniform"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="per setting")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, help="an SVG of the stored rows")
    parser.add_argument("--show", action="store_true", help="print the table, and measure nothing")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    rows, settings = stored(options.json), all_settings(options)
    for setting in [] if options.show else settings:
        known = {**setting, "threads": options.threads}
        if any(known.items() <= row.items() for row in rows):
            continue  # it is stored
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                row = measured(setting, options.seconds)
            except SparsifyError as error:
                print(f"left out: {setting}: {error}", flush=True)
                continue
        print(table([row]).splitlines()[-1], flush=True)
        rows = [*stored(options.json), row]  # another process may measure other settings
        options.json.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n ".join(json.dumps(one) for one in rows)
        text = f'{{"machine": {json.dumps(machine())}, "rows": [\n {lines}\n]}}\n'
        write_atomically(options.json, text.encode())
    print(table(rows_of(rows, settings, options.threads)))
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
