"""The headline: the rows that the terminal and ``report.html`` both show, and the sentences under them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Headline:
    """A table: column titles, then rows of a title and one cell a column."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


ROWS = (
    ("accuracy", "accuracy", ".4f"),
    ("NLL", "nll", ".4f"),
    ("Brier score", "brier", ".4f"),
    ("ECE before calibration", "ece_before", ".4f"),
    ("ECE after calibration", "ece_after", ".4f"),
    ("size on disk, bytes", "bytes", ","),
    ("maskable weights", "maskable", ","),
    ("non-zeros of them", "nonzeros", ","),
    ("density", "density", ".4f"),
    ("MACs an example", "macs", ","),
)
LATENCY_ROWS = ("latency, ms", "times as fast as dense")


def parts(report: Report) -> list[str]:
    """The models of a run: ``dense`` where it has a baseline, then ``model``."""
    return [name for name in ("dense", "model") if name in report]


def title(part: str, report: Report) -> str:
    """``dense`` for the baseline, the method's name for the model."""
    return "dense" if part == "dense" else str(report["model"].get("method", "model"))


def headline(report: Report, latency: Report | None) -> Headline:
    """The table of a run.

    Args:
        report: content of ``metrics.json``.
        latency: content of ``latency.json``, or None where it was not measured.
    """
    names = parts(report)
    rows = [(label, tuple(format(report[name][key], style) for name in names)) for label, key, style in ROWS]
    if latency:
        timings = {row["name"]: row for row in latency["timings"]}
        rows.append((LATENCY_ROWS[0], tuple(f"{timings[name]['milliseconds']:.3f}" for name in names)))
        if "dense" in names:
            cells = [_ratio(timings[name]) if name != "dense" else "1" for name in names]
            rows.append((LATENCY_ROWS[1], tuple(cells)))
    return Headline(tuple(title(name, report) for name in names), tuple(rows))


def _ratio(timing: Report) -> str:
    low, high = timing["interval"]
    return f"{timing['speedup']:.2f} ({low:.2f} to {high:.2f})"


def sentences(report: Report, latency: Report | None, verdict: str | None) -> Sequence[str]:
    """What the figures say, the losses too, in plain sentences.

    Args:
        report: content of ``metrics.json``.
        latency: content of ``latency.json``, or None.
        verdict: of the model against the baseline (`sparsify.reports.latency.Latency.verdict`), or None.
    """
    model, found = report["model"], []
    found.append(
        f"{model['nonzeros']:,} of {model['maskable']:,} maskable weights are not zero: density {model['density']:.4f}, counted in "
        f"the ONNX file."
    )
    if "dense" in report:
        points = 100 * (model["accuracy"] - report["dense"]["accuracy"])
        direction = "above" if points > 0 else "below"
        found.append(
            f"Accuracy is {abs(points):.2f} points {direction} that of the dense baseline, which had the same budget of steps and "
            f"data (one seed: {report['seed']})."
        )
    before, after = model["ece_before"], model["ece_after"]
    change = "lowered" if after < before else "did not lower"
    found.append(
        f"{model['calibration']['kind'].capitalize()} scaling, fitted on {model['calibration']['samples']:,} held-out samples, {change} "
        f"the test ECE: {before:.4f} before, {after:.4f} after."
    )
    found.append(
        f"ONNX Runtime agrees with the program: largest error {model['parity']['largest_error']:.1e} of the outputs' range, tolerance "
        f"{model['parity']['tolerance']:.0e}; {model['parity']['decisions']:,} predictions compared."
    )
    if latency and verdict:
        timing = next(row for row in latency["timings"] if row["name"] == "model")
        low, high = latency["noise"]
        text = (
            f"Latency at batch {latency['batch']}, {latency['threads']} thread(s): {timing['speedup']:.2f} times as fast as the dense "
            f"file, {verdict} (the dense file against itself: {low:.2f} to {high:.2f})."
        )
        if verdict != "faster":
            text += " A stock runtime multiplies zeros like other numbers; a structured pattern is needed to be faster."
        found.append(text)
    return found
