"""Prints the results of a run, a grid, a program and an export; only imported when there is something to print."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from sparsify.exporters import ExportResult
from sparsify.heads.registry import NONE
from sparsify.ir import Program
from sparsify.reports import headline, int8_sentence, savings_line, verdict
from sparsify.runs.comparison import COMPARISON, Comparison
from sparsify.runs.workflow import ARTEFACTS
from sparsify.terminal import messages, tables
from sparsify.terminal.console import console


def show_run(report: Mapping[str, Any], out: Path) -> None:
    """Print the verdict of a run, what training saved, its figures, and the files in its folder.

    Args:
        report: content of ``metrics.json`` and, under ``latency``, of ``latency.json``.
        out: the folder.
    """
    for line in filter(None, [*verdict(report, report["latency"]), savings_line(report, report["latency"])]):
        console.print(line, highlight=False, markup=False)
    console.print(tables.figures("", headline(report, report["latency"])))
    files = [*ARTEFACTS, *sorted(path.name for path in out.glob("*-int8.onnx"))]
    console.print(f"in {out}: {', '.join(name for name in files if (out / name).exists())}", soft_wrap=True)


def show_grid(found: Comparison, out: Path) -> None:
    """Print the table of a grid, how far it can be trusted, and the cells that failed."""
    console.print(tables.comparison(found.summary))
    trust = found.summary.sentences()[0]
    console.print(f"Mean ± standard deviation over seeds; below, the difference to the base. {trust}", highlight=False)
    console.print(f"in {out}: {', '.join(COMPARISON)}", soft_wrap=True)
    for failure in found.failures:
        messages.said(f"{failure.cell} failed: {failure.error}")


def show_program(program: Program, forms: Mapping[str, str]) -> None:
    """Print the text of a program, what each weight costs, how training would store it (``forms``), and how much may be sparse."""
    typer.echo(program.text())
    console.print(tables.weights(program, forms), crop=False, soft_wrap=True)
    console.print(tables.whole(program), highlight=False, soft_wrap=True)


def show_export(result: ExportResult, measured: Mapping[str, Any] | None) -> None:
    """Print the exported file, how it agrees with the program, and the form of each layer.

    Args:
        result: result of the export.
        measured: figures of an int8 file on the test samples.
    """
    batches = " and ".join(map(str, result.parity.batches))
    masked = "no weight has a mask"
    if result.positions:
        share = f"{100 * result.model_density:.1f} % of all the model's weights"
        masked = f"{result.nonzeros:,} of {result.positions:,} masked weights not zero, {share}"
    console.print(
        f"{result.path}: {result.bytes:,} bytes, {masked}; agrees with "
        f"the program to {result.parity.largest_error:.1e}, relative to each of {result.parity.units:,} outputs per sample, at batch "
        f"{batches}."
    )
    if not result.batch_range.everything:
        console.print(f"  takes batches of {result.batch_range} only, as forward does", highlight=False, markup=False)
    if result.head not in (None, NONE):
        console.print(f"  calibration head: {result.head}", highlight=False, markup=False)
    for text in result.parity.uncompared:
        console.print(f"  not compared: {text}", highlight=False, markup=False)
    for weight, choice in result.forms.items():
        console.print(f"  {weight}: {choice}", highlight=False)
    if result.int8 and measured:
        console.print(tables.int8(result.int8, measured))
        console.print(int8_sentence(measured), highlight=False)
