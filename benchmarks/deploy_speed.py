"""How fast exported files are: grouped patterns, a narrower dense network and dense int8 against the dense fp32 file, in ONNX Runtime.

All files of one setting (network, batch, threads) are timed in turn in one process. A figure is the median over rounds of the ratio to
the dense file of the same round, with its 95 % interval; the dense file against itself shows the noise. Weights are random: the time of
dense operators does not depend on them. Files are made once and kept in the folder given, so that a run can go on where it stopped.

python benchmarks/deploy_speed.py --quick                       # 90 %, batch 1, one thread
python benchmarks/deploy_speed.py --folder runs/speed --networks mlp resnet50 --sparsity 0.9 --batch 1 32 --threads 1 4
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import sparsify as sp
from sparsify.exporters import export
from sparsify.ir.serialization import write_atomically
from sparsify.passes import InsertMasks, Pipeline
from sparsify.reports import compare
from sparsify.reports.latency import machine

sys.path.insert(0, str(Path(__file__).parent))
from networks import NETWORKS

PATTERNS = {
    "mlp": ("grouped:32", "grouped:64", "grouped:128", "grouped:64x4", "grouped:64x8", "grouped:1024"),
    "": ("grouped:32", "grouped:64", "grouped:128", "grouped:4096"),
}
"""grouped:1024 and grouped:4096 are one group a layer."""
QUICK = {"mlp": ("grouped:64", "grouped:64x8"), "": ("grouped:64",)}


def inputs(name: str, count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *NETWORKS[name][1], generator=torch.Generator().manual_seed(seed))


def build(name: str, width: float = 1.0) -> sp.Program:
    """The network of a width with seeded weights, traced."""
    torch.manual_seed(0)
    return sp.trace(NETWORKS[name][0](width).eval(), (inputs(name, 2),)).eval()


def make(path: Path, program: sp.Program, name: str, **options: Any) -> dict[str, Any]:
    """Export unless the file is there; what is known of it is kept beside it."""
    notes = path.with_suffix(".json")
    if not (path.exists() and notes.exists()):
        result = export(program, path, inputs=[inputs(name, 2)], **options)
        costs = program.costs()
        known = {"density": costs.density, "macs": costs.macs_active / costs.macs_dense, "forms": dict(result.forms)}
        known["parity"] = result.parity.largest_error
        write_atomically(notes, json.dumps(known, indent=1).encode())
    return json.loads(notes.read_text())


def quantised(dense: Path, name: str) -> Path:
    """The dense file in int8: static, per channel, QDQ, by ONNX Runtime's own quantiser."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    path = dense.with_name("int8.onnx")
    if path.exists():
        return path

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            key = onnx.load(dense, load_external_data=False).graph.input[0].name
            self.rows = iter([{key: inputs(name, 1, seed).numpy()} for seed in range(8)])

        def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
            return next(self.rows, None)

    quantize_static(
        str(dense), str(path), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
    )  # fmt: skip
    return path


def files(
    name: str, sparsity: float, patterns: Sequence[str], folder: Path, *, rivals: bool
) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Row name -> (file, what is known of it), the dense file first."""
    program = build(name)
    made: dict[str, tuple[Path, dict[str, Any]]] = {}
    dense = folder / name / "dense.onnx"
    made["dense"] = dense, make(dense, program, name, form="dense")
    if rivals:
        made["int8"] = quantised(dense, name), {}
    fraction = 1 - sparsity
    for pattern in patterns:
        path = folder / name / f"{pattern.replace(':', '-')}-{sparsity}.onnx"
        if not path.exists():
            masks = InsertMasks(
                pattern=pattern, density=round(1 - sparsity, 6), allocation="uniform", keep_dense=NETWORKS[name][2]
            )
            try:
                sparse = Pipeline((masks,))(program).eval()
            except sp.errors.AllocationError as error:
                print(f"{name} {pattern} at {sparsity:.0%}: {error}")
                continue
        else:
            sparse = program
        known = make(path, sparse, name)
        made[pattern] = path, known
        if pattern == "grouped:64":
            fraction = known["macs"]
    if rivals:
        path = folder / name / f"narrow-{sparsity}.onnx"
        width = math.sqrt(fraction)
        made["narrower dense"] = path, make(path, build(name, width), name, form="dense") | {"width": width}
    return made


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every network x sparsity x batch x threads; the report is written after each."""
    rows: list[dict[str, Any]] = []
    for name in options.networks:
        for sparsity in options.sparsity:
            patterns = (
                options.patterns
                or (QUICK if options.quick else PATTERNS).get(name)
                or (QUICK if options.quick else PATTERNS)[""]
            )
            made = files(name, sparsity, patterns, options.folder, rivals=not options.no_rivals)
            for batch in options.batch:
                for threads in options.threads:
                    result = compare(
                        {row: path for row, (path, _) in made.items()},
                        batch=batch,
                        threads=threads,
                        rounds=options.rounds,
                    )
                    for timing in result.timings:
                        known = made[timing.name][1]
                        rows.append({
                            "network": name, "sparsity": sparsity, "batch": batch, "threads": threads, "row": timing.name,
                            "milliseconds": timing.milliseconds, "times_as_fast": timing.speedup, "interval": timing.interval,
                            "noise": result.noise, "bytes": timing.bytes, **known,
                        })  # fmt: skip
                        low, high = timing.interval
                        print(
                            f"{name:10} {sparsity:.0%} batch {batch:2} threads {threads} {timing.name:16} {timing.milliseconds:9.3f} ms "
                            f"{timing.speedup:5.2f} ({low:.2f} to {high:.2f})",
                            flush=True,
                        )
                    report = {"machine": dict(machine()), "rows": rows}
                    write_atomically(options.json, (json.dumps(report, indent=1) + "\n").encode())
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of the ratio to dense fp32, one panel a setting."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings = sorted({(r["sparsity"], r["batch"], r["threads"]) for r in rows})
    figure, axes = pyplot.subplots(len(settings), 1, figsize=(9, 3.2 * len(settings)), squeeze=False)
    for axis, (sparsity, batch, threads) in zip(axes[:, 0], settings, strict=True):
        shown = [r for r in rows if (r["sparsity"], r["batch"], r["threads"]) == (sparsity, batch, threads)]
        networks = list(dict.fromkeys(r["network"] for r in shown))
        names = [n for n in dict.fromkeys(r["row"] for r in shown) if n != "dense"]
        for index, row in enumerate(names):
            points = [(networks.index(r["network"]), r["times_as_fast"]) for r in shown if r["row"] == row]
            width = 0.8 / len(names)
            axis.bar(
                [x + (index - len(names) / 2 + 0.5) * width for x, _ in points],
                [y for _, y in points],
                width,
                label=row,
            )
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set_xticks(range(len(networks)), networks)
        axis.set_title(f"{sparsity:.0%} sparse, batch {batch}, {threads} thread(s)", fontsize=9)
        axis.set_ylabel("times as fast as dense fp32", fontsize=8)
        axis.legend(fontsize=7, ncols=4)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--sparsity", nargs="+", type=float)
    parser.add_argument("--patterns", nargs="+")
    parser.add_argument("--batch", nargs="+", type=int)
    parser.add_argument("--threads", nargs="+", type=int)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--folder", type=Path, default=Path("runs/deploy_speed"), help="of the ONNX files")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--no-rivals", action="store_true", help="leave out int8 and the narrower network")
    parser.add_argument("--quick", action="store_true", help="90 %%, one pattern, batch 1, one thread")
    options = parser.parse_args()
    options.sparsity = options.sparsity or ([0.9] if options.quick else [0.5, 0.75, 0.9, 0.95])
    options.batch = options.batch or ([1] if options.quick else [1, 32])
    options.threads = options.threads or ([1] if options.quick else sorted({1, every}))
    options.json = options.json or options.folder / "deploy_speed.json"
    options.folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = measure(options)
    plot(rows, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
