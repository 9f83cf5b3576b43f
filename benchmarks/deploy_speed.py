"""How fast exported files are: sparse patterns, a narrower dense network and dense int8 against the dense fp32 file, in ONNX Runtime.

All files of one setting (network, sparsity, batch, threads) are timed in turn in one process. A figure is the median over rounds of the
ratio to the dense file of the same round, with its 95 % interval; the dense file against itself shows the noise. Weights are random;
batch norms get the statistics of a batch, so that values stay in the range of a trained network's, and every file is proved against its
program before it is timed. Files and measured settings are kept, so that a run goes on where it stopped.

python benchmarks/deploy_speed.py --quick                       # 90 %, fp32 and int8, batch 1 (MLP 64 too), one thread: 10 minutes
python benchmarks/deploy_speed.py --networks mlp resnet50 --sparsity 0.9 --batch 1 32 --threads 1 4
python benchmarks/deploy_speed.py --show                        # the table and plot of what has been measured
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sparsify as sp
from sparsify.exporters import export
from sparsify.files import write_atomically
from sparsify.passes import InsertMasks, Pipeline
from sparsify.reports import compare
from sparsify.reports.digits import three_digits
from sparsify.reports.latency import machine

sys.path.insert(0, str(Path(__file__).parent))
from networks import NETWORKS
from rivals import openvino_rows, processor, quantised

GROUPED = ("grouped:32", "grouped:64", "grouped:128", "one group", "block-diagonal")
PATTERNS = {name: GROUPED for name in NETWORKS} | {"mlp": (*GROUPED, "grouped:64x4", "grouped:64x8")}
QUICK = {name: ("grouped:64",) for name in NETWORKS} | {"mlp": ("grouped:64", "grouped:64x8")}
QUICK_BATCHES = {name: (1,) for name in NETWORKS} | {"mlp": (1, 64)}
RIVALS = ("int8", "narrower dense", "openvino")
PRECISIONS = ("fp32", "int8")
"""Of sparse files; int8 is the fastest of its fp32 and int8 forms by timed trials at the batch and threads of the setting."""
CALIBRATION = 16
"""Inputs at least on which int8 ranges are observed, and as many others on which predictions are compared."""
ONE_GROUP = "grouped:65536"


@dataclass(frozen=True)
class Setting:
    """What is timed together."""

    network: str
    sparsity: float
    batch: int
    threads: int

    def matches(self, row: Mapping[str, Any]) -> bool:
        return all(row[key] == value for key, value in vars(self).items())


def inputs(name: str, count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *NETWORKS[name][1], generator=torch.Generator().manual_seed(seed))


def settled(program: sp.Program, name: str) -> sp.Program:
    """Batch norms with the statistics of a batch (their momentum is 1): random and sparse layers would else let values vanish."""
    with torch.no_grad():
        program.train()(inputs(name, 4))
    return program.eval()


def build(name: str, width: float = 1.0) -> sp.Program:
    """The network of a width with seeded weights, traced."""
    torch.manual_seed(0)
    return settled(sp.trace(NETWORKS[name][0](width).eval(), (inputs(name, 2),)), name)


def sparse(program: sp.Program, name: str, pattern: str, sparsity: float) -> sp.Program:
    """Masks by magnitude, the same density for every layer as far as floors allow."""
    density = 1.0 if pattern == "block-diagonal" else round(1 - sparsity, 6)
    text = {"one group": ONE_GROUP, "block-diagonal": "unstructured"}.get(pattern, pattern)
    masks = InsertMasks(pattern=text, density=density, allocation="uniform", keep_dense=NETWORKS[name][2])
    masked = Pipeline((masks,))(program)
    if pattern == "block-diagonal":
        for weight, mask in masked.masks().items():
            mask.copy_(diagonal(mask, 1 - sparsity))
            masked.get_parameter(weight).detach().mul_(mask)
    return settled(masked, name)


def diagonal(mask: torch.Tensor, density: float) -> torch.Tensor:
    """Blocks along the diagonal, each input in one group; as many as the density allows, convolutions with multiples of 16 a group."""
    (outputs, columns), lanes = mask.shape[:2], 16 if mask.ndim > 2 else 1
    fits = [2**i for i in range(12) if outputs % (lanes * 2**i) == columns % (lanes * 2**i) == 0]
    blocks = [count for count in fits if count * density <= 1.001]
    count = max(blocks, default=1)
    same = torch.arange(outputs)[:, None] * count // outputs == torch.arange(columns) * count // columns
    return same.reshape(outputs, columns, *[1] * (mask.ndim - 2)).expand(mask.shape)


def make(path: Path, program: Callable[[], sp.Program], name: str, **options: Any) -> dict[str, Any]:
    """Export unless the file is there; what is known of it is kept beside it."""
    notes = path.with_suffix(".json")
    if not (path.exists() and notes.exists()):
        if options.get("precision") == "int8":
            count = max(CALIBRATION, options["batch"])
            options |= {"calibration": [inputs(name, count, seed=1)], "held_out": [inputs(name, count, seed=2)]}
        made = program()
        result = export(made, path, inputs=[inputs(name, 2)], **options)
        costs = made.costs()
        known = {
            "density": costs.density,
            "macs": costs.macs_active / costs.macs_dense,
            "parity": result.parity.largest_error,
        }
        known["grouped"] = sum(text.startswith("grouped") for text in result.forms.values())
        if result.int8:
            known["form"], known["agreed"] = result.int8.chosen.name, result.int8.agreed / result.int8.decisions
            known["trials"] = {trial.name: trial.milliseconds for trial in result.int8.trials}
        write_atomically(notes, json.dumps(known, indent=1).encode())
    return json.loads(notes.read_text())


def files(setting: Setting, options: argparse.Namespace) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Row name -> (file, what is known of it), the dense file first."""
    name, sparsity, folder = setting.network, setting.sparsity, options.folder / setting.network
    folder.mkdir(parents=True, exist_ok=True)
    programs: dict[float, sp.Program] = {}

    def of_width(width: float = 1.0) -> sp.Program:
        return programs.setdefault(width, build(name, width)) if width not in programs else programs[width]

    made = {"dense": (folder / "dense.onnx", make(folder / "dense.onnx", of_width, name, form="dense"))}
    if "int8" in options.rivals:
        path = quantised(made["dense"][0], [inputs(name, 1, seed).numpy() for seed in range(8)])
        made["int8"] = path, {}
    for pattern in options.patterns or (QUICK if options.quick else PATTERNS)[name]:
        for precision in options.precision:
            row, place, given = pattern, f"{pattern}-{sparsity}", {"batch": setting.batch}
            if setting.batch > 1:
                place = f"{place}-{setting.batch}"
            if precision == "int8":  # a file for this batch and these threads
                row, place = f"{pattern} int8", f"{place}-int8-{setting.threads}"
                given |= {"precision": precision, "threads": setting.threads}
            path = folder / f"{place.replace(':', '-').replace(' ', '-')}.onnx"
            try:
                known = make(path, lambda p=pattern: sparse(of_width(), name, p, sparsity), name, **given)
            except sp.errors.AllocationError as error:
                print(f"{name} {pattern} at {sparsity:.0%}: {error}")
                continue
            made[row] = path, known
    if "narrower dense" in options.rivals:
        fraction = made["grouped:64"][1]["macs"] if "grouped:64" in made else 1 - sparsity
        width, path = math.sqrt(fraction), folder / f"narrower-{sparsity}.onnx"
        made["narrower dense"] = path, make(path, lambda: of_width(width), name, form="dense") | {"width": width}
    return made


def measure(setting: Setting, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one setting."""
    made = files(setting, options)
    paths = {row: path for row, (path, _) in made.items()}
    result = compare(paths, batch=setting.batch, threads=setting.threads, rounds=options.rounds)
    rows: list[dict[str, Any]] = []
    for timing in result.timings:
        rows.append({
            **vars(setting), "row": timing.name, "milliseconds": timing.milliseconds, "quartiles": timing.quartiles,
            "times_as_fast": timing.speedup, "interval": timing.interval, "noise": result.noise, "verdict": result.verdict(timing),
            "bytes": timing.bytes, **made[timing.name][1],
        })  # fmt: skip
    if "openvino" in options.rivals:
        extra = openvino_rows(
            paths, inputs(setting.network, setting.batch).numpy(), threads=setting.threads, rounds=options.rounds
        )
        rows += [{**vars(setting), **row} for row in extra]
    return rows


def measured(path: Path, here: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of an earlier run on the same machine."""
    if not path.exists():
        return []
    report = json.loads(path.read_text())
    if report["machine"] != here:
        sys.exit(f"{path} holds figures of another machine ({report['machine']}); choose another --json.")
    return report["rows"]


def line(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    return (
        f"{row['network']:10} {row['sparsity']:4.0%}  batch {row['batch']:2}  threads {row['threads']}  {row['row']:22} "
        f"{three_digits(row['milliseconds']):>9} ms  {row['times_as_fast']:5.2f}  ({low:.2f} to {high:.2f})  {row.get('form', '')}".rstrip()
    )


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
            chosen = [r for r in shown if r["row"] == row]
            width, values = 0.8 / len(names), [r["times_as_fast"] for r in chosen]
            places = [networks.index(r["network"]) + (index - len(names) / 2 + 0.5) * width for r in chosen]
            spread = np.abs(np.array([r["interval"] for r in chosen]).T - np.array(values))
            axis.bar(places, values, width, label=row, yerr=spread, error_kw={"linewidth": 0.6})
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set_xticks(range(len(networks)), networks)
        axis.set_title(f"{sparsity:.0%} sparse, batch {batch}, {threads} thread(s)", fontsize=9)
        axis.set_ylabel("times as fast as dense fp32", fontsize=8)
        axis.legend(fontsize=7, ncols=4)
    figure.tight_layout()
    figure.savefig(path)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--sparsity", nargs="+", type=float, help="default 0.5 0.75 0.9 0.95")
    parser.add_argument("--patterns", nargs="+", help=f"default {', '.join(PATTERNS['mlp'])}, chunks for the mlp alone")
    parser.add_argument("--batch", nargs="+", type=int, help="default 1 32, quick 1 and for the mlp 64")
    parser.add_argument("--threads", nargs="+", type=int, help="default 1 and all")
    parser.add_argument(
        "--rivals", nargs="*", choices=RIVALS, default=list(RIVALS), help="openvino where it is installed"
    )
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, help="of the sparse files, default fp32")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--folder", type=Path, default=Path("runs/deploy_speed"), help="of the ONNX files")
    parser.add_argument("--json", type=Path, help="default deploy_speed.json in the folder")
    parser.add_argument("--again", action="store_true", help="measure settings anew that the report holds")
    parser.add_argument("--show", action="store_true", help="print and plot the report, and measure nothing")
    parser.add_argument(
        "--quick", action="store_true", help="90 %%, few patterns, both precisions, batch 1, MLP 64 too, one thread"
    )
    options = parser.parse_args()
    options.sparsity = options.sparsity or ([0.9] if options.quick else [0.5, 0.75, 0.9, 0.95])
    options.precision = options.precision or (list(PRECISIONS) if options.quick else ["fp32"])
    options.threads = options.threads or ([1] if options.quick else sorted({1, every}))
    options.json = options.json or options.folder / "deploy_speed.json"
    return options


def main() -> None:
    options = parse()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    here = {**machine(), **processor()}
    rows = measured(options.json, here)
    wanted = [] if options.show else [
        Setting(name, sparsity, batch, threads)
        for name in options.networks for sparsity in options.sparsity
        for batch in options.batch or (QUICK_BATCHES[name] if options.quick else (1, 32)) for threads in options.threads
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for setting in wanted:
            if not options.again and any(setting.matches(row) for row in rows):
                continue
            found = measure(setting, options)
            print("\n".join(map(line, found)), flush=True)
            rows = [row for row in rows if not setting.matches(row)] + found
            write_atomically(options.json, (json.dumps({"machine": here, "rows": rows}, indent=1) + "\n").encode())
    if options.show:
        print(", ".join(f"{key}: {value}" for key, value in here.items()))
        print("\n".join(map(line, rows)))
    if rows:
        plot(rows, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
