"""What heads cost in ONNX Runtime: a file with further outputs against the same file with logits only.

A ResNet-20 for CIFAR-10 with random weights, and the heads fitted to images of the data; the time of an operator does not depend on the
values. All files are timed in turn in one process. A figure is the median over rounds of the ratio to the file with logits only of the
same round, with its 95 % interval; that file against itself shows the noise.

python benchmarks/heads_cost.py --data cifar10_jpeg.npz            # 2 minutes; nothing else should run
python benchmarks/heads_cost.py --show                             # the table of benchmarks/results/heads_cost.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import sparsify as sp
from sparsify.calibration import fit
from sparsify.files import write_atomically
from sparsify.heads import HEADS, Outlier
from sparsify.loading import load_data
from sparsify.reports import compare
from sparsify.reports.latency import machine

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from cifar import resnet20

RESULTS = Path(__file__).parent / "results" / "heads_cost.json"
ANSWERS = ("temperature", "lac:0.9", "accept:0.05")
SETS = ("lac:0.9", "class-lac:0.9", "aps:0.9", "raps:0.9")
SAMPLES = 4000
PLAIN = "logits only"


def rows_of_heads() -> dict[str, tuple[str, ...]]:
    """The heads of each file, by the name of its row."""
    found: dict[str, tuple[str, ...]] = {PLAIN: (), "temperature": ("temperature",)}
    found |= {f"temperature, {spec}": ("temperature", spec) for spec in SETS}
    found |= {"temperature, accept:0.05": ("temperature", "accept:0.05")}
    scores = [head.spec for head in HEADS.values() if isinstance(head, Outlier)]
    return found | {f"{', '.join(ANSWERS)}, {spec}": (*ANSWERS, spec) for spec in scores}


def measure(data: Path, rounds: int, batch: int) -> dict[str, Any]:
    """Export a file for each row, and time all."""
    torch.manual_seed(0)
    loaded = load_data(str(data), seed=0, train_samples=SAMPLES)
    program = sp.trace(resnet20().eval(), (loaded.example(2),))
    with torch.no_grad():
        for rows in torch.arange(512).split(128):  # statistics for batch norms
            program.train()(loaded.train.batch(rows).inputs)
    program.eval()
    with tempfile.TemporaryDirectory() as folder:
        paths = dict[str, Path]()
        for number, (name, heads) in enumerate(rows_of_heads().items()):
            made = program.clone()
            for spec in heads:
                sp.Pipeline.parse(f"attach-calibration-head{{kind={spec}}}").apply(made)
            made.eval()
            if heads:
                fit(made, loaded.validation, training=loaded.train)
            paths[name] = sp.export(made, Path(folder) / f"{number}.onnx", inputs=[loaded.example(16)]).path
        result = compare(paths, batch=batch, threads=1, rounds=rounds)
        plain = paths[PLAIN].stat().st_size
        rows = [
            {
                "row": timing.name, "milliseconds": timing.milliseconds, "cost": 1 / timing.speedup,
                "interval": [1 / timing.interval[1], 1 / timing.interval[0]],
                "bytes_more": paths[timing.name].stat().st_size - plain,
            }
            for timing in result.timings
        ]  # fmt: skip
    return {"machine": machine(), "batch": batch, "rounds": rounds, "noise": result.noise, "rows": rows}


def table(report: Mapping[str, Any]) -> list[str]:
    """The rows of a table in Markdown."""
    lines = ["| outputs of | ms | times as long as logits only | more bytes |", "| --- | --- | --- | --- |"]
    for row in report["rows"]:
        low, high = row["interval"]
        lines.append(
            f"| {row['row']} | {row['milliseconds']:.3f} | {row['cost']:.3f} ({low:.3f} to {high:.3f}) | {row['bytes_more']:,} |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="cifar10_jpeg.npz")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--show", action="store_true", help="the table of what has been measured")
    given = parser.parse_args()
    if not given.show:
        if given.data is None:
            parser.error("give --data, the path of cifar10_jpeg.npz, or --show")
        write_atomically(given.json, json.dumps(measure(given.data, given.rounds, given.batch), indent=1).encode())
    report = json.loads(given.json.read_text())
    print(f"{report['machine']}, batch {report['batch']}, noise {report['noise']}")
    print("\n".join(table(report)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
