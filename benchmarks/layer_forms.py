"""Whether `form="auto"` takes the faster form of linear layers: files of chains of layers, auto against dense, in ONNX Runtime.

A chain is four layers of one width with ReLU, 90 % sparse in groups; weights are random. Its rows are the samples of a batch ([N, F]), or
the tokens of one sample ([N, T, F], T of any size). All files of a width and number of rows are timed in turn, on one thread. A figure is
the median over rounds of the ratio to the dense file of that round, with its 95 % interval. Files and figures are kept, so that a run goes
on where it stopped.

python benchmarks/layer_forms.py                      # makes files, times them, prints the table: half an hour, 2 minutes of it timing
python benchmarks/layer_forms.py --make               # only makes the files
python benchmarks/layer_forms.py --kinds tokens --widths 64 --rows 1 --forms auto grouped
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

import sparsify as sp
from sparsify.files import write_atomically
from sparsify.reports import compare
from sparsify.reports.latency import machine

KINDS = ("batch", "tokens")
WIDTHS = (32, 64, 128, 256, 512, 1024)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
GROUPS = (8, 16, 32, 64)
LAYERS, DENSITY = 4, 0.1


def chain(kind: str, width: int, rows: int) -> tuple[sp.Program, torch.Tensor]:
    """A traced chain, and inputs to export it with."""
    torch.manual_seed(0)
    model = nn.Sequential(*(part for _ in range(LAYERS) for part in (nn.Linear(width, width), nn.ReLU())))
    x = torch.randn(4, width) if kind == "batch" else torch.randn(4, rows, width)
    dynamic = {} if kind == "batch" else {"input": {1: "T"}}
    return sp.trace(model, (x,), dynamic=dynamic).eval(), x


def masked(program: sp.Program, groups: int) -> sp.Program:
    text = f"insert-masks{{pattern=grouped:{groups} density={DENSITY} allocation=uniform}}"
    return sp.Pipeline.parse(text)(program).eval()


def made(folder: Path, kind: str, width: int, rows: int, forms: list[str]) -> dict[str, Path]:
    """The files of a width and number of rows by name, the dense one first."""
    dense = folder / f"{kind}-{width}-dense.onnx"
    found = {"dense": dense}
    wanted = {
        f"grouped:{groups} {form}": (groups, form, folder / f"{kind}-{width}-{rows}-{groups}-{form}.onnx")
        for groups in GROUPS if groups <= width for form in forms
    }  # fmt: skip
    missing = [place for place in (dense, *(path for _, _, path in wanted.values())) if not place.exists()]
    if missing:
        program, x = chain(kind, width, rows)
        options: dict[str, Any] = {"inputs": [x], "batch": rows if kind == "batch" else 1}
        if dense in missing:
            sp.export(program, dense, form="dense", **options)
        for groups, form, path in wanted.values():
            if path in missing:
                sp.export(masked(program, groups), path, form=form, **options)
    return found | {name: path for name, (_, _, path) in wanted.items()}


def measure(files: dict[str, Path], kind: str, rows: int, rounds: int) -> list[dict[str, Any]]:
    """Ratios of all files to the dense one."""
    batch = rows if kind == "batch" else 1
    shape = {} if kind == "batch" else {"input": (1, rows, int(files["dense"].stem.split("-")[1]))}
    result = compare(files, batch=batch, shapes=shape, rounds=rounds)
    return [
        {"row": t.name, "milliseconds": t.milliseconds, "times_as_fast": t.speedup, "interval": t.interval,
         "noise": result.noise, "verdict": result.verdict(t)}
        for t in result.timings[1:]
    ]  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Times as fast as dense by width and rows, a line per width, kind and pattern; then each file whose whole interval is below 1."""
    counts = sorted({row["rows"] for row in rows})
    lines = [f"| | {' | '.join(map(str, counts))} |", f"| --- |{' --- |' * len(counts)}"]
    for key in dict.fromkeys((row["kind"], row["width"], row["row"]) for row in rows):
        own = {row["rows"]: row for row in rows if (row["kind"], row["width"], row["row"]) == key}
        cells = (f"{own[count]['times_as_fast']:.2f}" if count in own else "" for count in counts)
        lines.append(f"| {key[0]}, width {key[1]}, `{key[2]}` | {' | '.join(cells)} |")
    slower = [row for row in rows if row["verdict"] == "slower"]
    said = [f"{len(slower)} of {len(rows)} files are slower than dense beyond noise."]
    for row in (row for row in rows if row["interval"][1] < 1):
        low, high = row["interval"]
        place = f"{row['kind']}, width {row['width']}, `{row['row']}`, {row['rows']} rows"
        said.append(f"{place}: {row['times_as_fast']:.2f} ({low:.2f} to {high:.2f}), {row['verdict']}.")
    return "\n".join((*lines, "", *said))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--widths", nargs="+", type=int, default=list(WIDTHS))
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    parser.add_argument("--forms", nargs="+", choices=("auto", "grouped"), default=["auto"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("runs/layer_forms"), help="of the ONNX files")
    parser.add_argument("--json", type=Path, help="default layer_forms.json in the folder")
    parser.add_argument("--make", action="store_true", help="make the files, and measure nothing")
    parser.add_argument("--show", action="store_true", help="print the table, and measure nothing")
    options = parser.parse_args()
    options.json = options.json or options.folder / "layer_forms.json"
    return options


def main() -> None:
    options = parse()
    options.folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
    settings = [(kind, width, count) for kind in options.kinds for width in options.widths for count in options.rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind, width, count in [] if options.show else settings:
            known = {"kind": kind, "width": width, "rows": count}
            if not options.make and any(known.items() <= row.items() for row in rows):
                continue
            files = made(options.folder, kind, width, count, options.forms)
            if options.make:
                continue
            rows += [{**known, **row} for row in measure(files, kind, count, options.rounds)]
            report = {"machine": machine(), "rows": rows}
            write_atomically(options.json, (json.dumps(report, indent=1) + "\n").encode())
    if not options.make:
        print(table(rows))


if __name__ == "__main__":
    main()
