"""Temperatures of masked inputs beside plain ones, where calibration samples are few.

Small CNNs, 90 % sparse by `gmp` and `rigl`, are trained on 2000 images until they are over-confident, and calibrated on 20 to 200 other
training images. Figures are of test images. Seeds choose the initial weights, the order of training and the calibration images. Digits
are the case that the head was made for: the only labelled images are those that the network was trained on.

python benchmarks/masked_temperature.py --data ../shared/data          # a folder with fashion_mnist.npz and cifar10_jpeg.npz
python benchmarks/masked_temperature.py --show                         # only prints the tables

Every network is stored when it is done; the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import functools
import io
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

import sparsify as sp
from sparsify.calibration import evaluate, fit
from sparsify.figures import metrics
from sparsify.figures.intervals import paired_difference
from sparsify.files import write_atomically
from sparsify.parts.samples import TensorSamples

ROOT = Path(__file__).parents[1]
SETS = {"fashion_mnist": "Fashion-MNIST", "cifar10_jpeg": "CIFAR-10"}
METHODS: dict[str, Callable[..., Any]] = {"gmp": sp.methods.gmp, "rigl": sp.methods.rigl}
TRAINED, POOL, TESTED = 2000, 1000, 4000
"""Images: to train, to draw calibration samples from, and to test."""
EPOCHS, BATCH, DENSITY = 20, 64, 0.1
SIZES = (20, 50, 100, 200)
HEADS = {"temperature": "temperature", "fixed": "masked-temperature:0.3:20", "chosen": "masked-temperature:0:20"}
RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
FIGURES = {"ece": ("ECE, %", 100.0, 2), "nll": ("NLL", 1.0, 3)}
Cell = dict[str, Any]
Cells = Sequence[Mapping[str, Any]]


def main() -> int:
    """The exit code: 0."""
    arguments = _arguments()
    torch.set_num_threads(1)
    cells: list[Cell] = json.loads(arguments.json.read_text())["cells"] if arguments.json.exists() else []
    wanted: list[Cell] = [{"data": "digits", "seed": seed} for seed in arguments.seeds]
    wanted += [{"data": d, "method": m, "seed": s} for d in SETS for m in METHODS for s in arguments.seeds]
    for cell in [] if arguments.show else wanted:
        if any(cell.items() <= known.items() for known in cells):
            continue
        print(cell, file=sys.stderr, flush=True)
        found = digits(cell["seed"]) if cell["data"] == "digits" else measured(arguments.data, **cell)
        cells.append({**cell, **found})
        write_atomically(arguments.json, encoded(cells))
    print(
        "\n\n".join(
            "\n".join(lines) for lines in (table(cells, "ece"), table(cells, "nll"), of_digits(cells), outcome(cells))
        )
    )
    return 0


def measured(folder: Path, data: str, method: str, seed: int) -> Cell:
    """Train a sparse network, calibrate it by every head on sets of every size, and measure the test images."""
    x, y, test, answers = images(folder, data)
    torch.manual_seed(seed)
    program = sp.trace(network(x.shape[1], x.shape[2]), (x[:2],)).train()
    optimizer = torch.optim.AdamW(program.parameters(), lr=0.003)
    steps = EPOCHS * (TRAINED // BATCH)
    trainer = sp.attach(METHODS[method](density=DENSITY), program, optimizer, total_steps=steps)
    draws = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for rows in torch.randperm(TRAINED, generator=draws).split(BATCH)[: TRAINED // BATCH]:
            trainer.loss(program(x[rows]), y[rows]).backward()
            trainer.step()
            optimizer.zero_grad()
    program = program.eval()
    z = evaluate(program, TensorSamples(test, answers))["logits"]
    found: Cell = {"accuracy": metrics.accuracy(z.softmax(1), answers), "none": quality(z, answers, 1.0)}
    pool = TRAINED + torch.randperm(POOL, generator=draws)
    for size in SIZES:
        samples = TensorSamples(x[pool[:size]], y[pool[:size]])
        found[str(size)] = {name: calibrated(program, spec, samples, z, answers) for name, spec in HEADS.items()}
    return found


def calibrated(program: sp.Program, spec: str, samples: TensorSamples, z: Tensor, answers: Tensor) -> Cell:
    """Fit a head to samples, and measure the logits ``z`` [N, K] of the test images with its temperature."""
    log = fit(sp.Pipeline.parse(f"attach-calibration-head{{kind={spec}}}")(program.clone()).eval(), samples)
    assert log.temperature is not None
    ratio = {"ratio": log.figures["ratio"]} if "ratio" in log.figures else {}
    found = quality(z, answers, log.temperature)
    return {"temperature": log.temperature, **ratio, **found, "fitted": not (log.note or "").startswith("not fitted")}


def digits(seed: int) -> Cell:
    """Train on 50 digits until all are right, fit T to these digits with masks, and measure the other digits with ECE of 10 bins."""
    held: Any = load_digits()
    x = torch.tensor(held.images, dtype=torch.float32).flatten(1) / 16
    y = torch.tensor(held.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    chosen = torch.cat([order[y[order] == number][:5] for number in range(10)])
    rest = torch.ones(len(x), dtype=torch.bool).index_fill(0, chosen, value=False)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
    program = sp.trace(model, (x[:2],)).eval()
    z, samples = evaluate(program, TensorSamples(x[rest], y[rest]))["logits"], TensorSamples(x[chosen], y[chosen])
    accuracy = metrics.accuracy(z.softmax(1), y[rest])
    found: Cell = {"accuracy": accuracy, "none": quality(z, y[rest], 1.0, bins=10)}
    plain = calibrated(program, "temperature", samples, z, y[rest])
    found["temperature"] = {"fitted": plain["fitted"]}
    for ratio in RATIOS:
        one = calibrated(program, f"masked-temperature:{ratio}:20", samples, z, y[rest])
        found[str(ratio)] = {**one, **quality(z, y[rest], one["temperature"], bins=10)}
    return found


def quality(z: Tensor, answers: Tensor, temperature: float, *, bins: int = 15) -> dict[str, float]:
    """ECE and NLL of logits [N, K] with a temperature."""
    found = (z / temperature).softmax(1)
    return {"ece": metrics.ece(found, answers, bins=bins), "nll": metrics.nll(found, answers)}


def network(channels: int, side: int) -> nn.Module:
    """Two convolutions and two linear layers."""
    layers = [nn.Conv2d(channels, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(32 * (side // 4) ** 2, 128), nn.ReLU(), nn.Linear(128, 10))


@functools.cache
def images(folder: Path, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Standardised images [N, C, H, W] and labels of the training part, then of the test part."""
    with np.load(folder / f"{name}.npz", allow_pickle=False) as held:
        found = list[Tensor]()
        for part, count in (("train", TRAINED + POOL), ("test", TESTED)):
            if f"x_{part}" in held:
                pixels = torch.from_numpy(held[f"x_{part}"][:count])[:, None]
            else:
                blob, ends = held[f"images_{part}"].tobytes(), held[f"offsets_{part}"][: count + 1].tolist()
                pictures = (Image.open(io.BytesIO(blob[a:b])) for a, b in itertools.pairwise(ends))
                pixels = torch.from_numpy(np.stack([np.asarray(one.convert("RGB")) for one in pictures])).permute(
                    0, 3, 1, 2
                )
            found += [pixels.float() / 255, torch.from_numpy(held[f"y_{part}"][:count].astype(np.int64))]
    mean, std = found[0].mean((0, 2, 3), keepdim=True), found[0].std((0, 2, 3), keepdim=True)
    return (found[0] - mean) / std, found[1], (found[2] - mean) / std, found[3]


def table(cells: Cells, figure: str) -> list[str]:
    """Markdown: means of a figure over seeds, and intervals of the differences to the plain temperature."""
    title, scale, digits_shown = FIGURES[figure]
    columns = (
        "none",
        "`temperature`",
        "masked, 0.3",
        "masked, chosen",
        "0.3 less `temperature`",
        "chosen less `temperature`",
    )
    lines = [f"| {title} | method | samples | {' | '.join(columns)} |", "| --- " * 9 + "|"]
    for data, method, size, rows in groups(cells):
        found = values(rows, size, figure)
        means = [f"{scale * statistics.mean(found[name]):.{digits_shown}f}" for name in ("none", *HEADS)]
        apart = [paired_difference(found[name], found["temperature"]) for name in ("fixed", "chosen")]
        for one in apart:
            assert one.interval is not None, "a table needs two seeds"
            low, high = (f"{scale * end:+.{digits_shown}f}" for end in one.interval)
            means.append(f"**{low} to {high}**" if one.clear else f"{low} to {high}")
        lines.append(f"| {SETS[data]} | `{method}` | {size} | {' | '.join(means)} |")
    return lines


def groups(cells: Cells) -> list[tuple[str, str, int, Cells]]:
    """Rows of the table: data, method, size of the calibration set, and their cells."""
    found = list[tuple[str, str, int, Cells]]()
    for data in SETS:
        for method in METHODS:
            rows = [cell for cell in cells if cell["data"] == data and cell["method"] == method]
            found += [(data, method, size, rows) for size in SIZES if rows]
    return found


def values(rows: Cells, size: int, figure: str) -> dict[str, list[float]]:
    """A figure by seed, for no head and for each."""
    found = {name: [row[str(size)][name][figure] for row in rows] for name in HEADS}
    return {"none": [row["none"][figure] for row in rows], **found}


def of_digits(cells: Cells) -> list[str]:
    """Markdown: temperatures and ECE of the digits by ratio, means over seeds."""
    rows = [cell for cell in cells if cell["data"] == "digits"]
    lines = [
        "| masked share | T | ECE |",
        "| --- | --- | --- |",
        f"| no calibration | 1 | {statistics.mean(row['none']['ece'] for row in rows):.3f} |",
    ]
    lines.append(f"| T -> 0, as without masks | 0 | {statistics.mean(1 - row['accuracy'] for row in rows):.3f} |")
    for ratio in RATIOS:
        means = (statistics.mean(row[str(ratio)][name] for row in rows) for name in ("temperature", "ece"))
        lines.append(f"| {ratio} | {next(means):.2f} | {next(means):.3f} |")
    return lines


def outcome(cells: Cells) -> list[str]:
    """Sentences: in how many rows a masked temperature is clearly better or worse than a plain one and than none, and what was chosen."""
    lines = list[str]()
    for name, told in (("fixed", "With a ratio of 0.3"), ("chosen", "With a chosen ratio")):
        for base in ("temperature", "none"):
            for figure, (title, *_) in FIGURES.items():
                apart = [
                    paired_difference(found[name], found[base])
                    for _, _, size, rows in groups(cells)
                    for found in [values(rows, size, figure)]
                ]
                better, worse = (sum(one.clear and (one.mean < 0) == lower for one in apart) for lower in (True, False))
                against = "`temperature`" if base == "temperature" else "no calibration"
                lines.append(
                    f"- {told}, {title.split(',')[0]} is clearly lower than with {against} in {better} of {len(apart)} rows, and clearly "
                    f"higher in {worse}."
                )
    networks = [cell for cell in cells if cell["data"] != "digits"]
    chosen = [cell[str(size)]["chosen"].get("ratio") for cell in networks for size in SIZES]
    counts = ", ".join(
        f"{ratio:g} in {chosen.count(ratio)}" for ratio in sorted({one for one in chosen if one is not None})
    )
    lines.append(f"- Ratios that were chosen in {len(chosen)} fits: {counts}.")
    return lines


def encoded(cells: Cells) -> bytes:
    """One cell per line."""
    lines = ",\n ".join(json.dumps(cell) for cell in cells)
    return f'{{"cells": [\n {lines}\n]}}\n'.encode()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--json",
        type=Path,
        default=ROOT / "benchmarks" / "results" / "masked_temperature.json",
        help="where figures are kept",
    )
    parser.add_argument("--show", action="store_true", help="print the tables, and measure nothing")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
