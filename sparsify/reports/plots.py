"""Plots as inline SVG: deterministic, on a transparent ground, text in the colour of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

INK = "#123456"
"""Stands for the page's text colour until the SVG is written."""
COLOURS = {"dense": "#5b8db8", "model": "#d9762b"}
STYLE = {
    "svg.hashsalt": "sparsify",
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
}
History = Sequence[Mapping[str, float]]


def curves(histories: Mapping[str, History], titles: Mapping[str, str]) -> str:
    """Training loss and validation accuracy by step, one line a model."""
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(8.4, 3.0), layout="constrained")
        loss, accuracy = figure.subplots(1, 2)
        for part, rows in histories.items():
            steps, look = (
                [row["step"] for row in rows],
                {"color": COLOURS[part], "marker": "." if len(rows) < 40 else ""},
            )
            loss.plot(steps, [row["loss"] for row in rows], label=titles[part], **look)
            loss.plot(steps, [row["val_loss"] for row in rows], linestyle=":", color=COLOURS[part])
            accuracy.plot(steps, [row["val_accuracy"] for row in rows], label=titles[part], **look)
        loss.set(xlabel="step", ylabel="loss (dotted: validation)", yscale="log")
        accuracy.set(xlabel="step", ylabel="validation accuracy")
        accuracy.legend(loc="lower right")
        return _svg(figure, "Training loss and validation accuracy by optimizer step")


def densities(layers: Sequence[Mapping[str, Any]]) -> str:
    """Density of every masked weight, as bars."""
    masked = [layer for layer in layers if layer["active"] is not None]
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(8.4, 0.8 + 0.24 * max(len(masked), 2)), layout="constrained")
        axis = figure.subplots()
        shares = [layer["active"] / layer["maskable"] for layer in masked]
        axis.barh(range(len(masked)), shares, color=COLOURS["model"], height=0.7)
        axis.set_yticks(range(len(masked)), [layer["name"] for layer in masked])
        axis.set(xlabel="density", xlim=(0, 1))
        axis.invert_yaxis()
        return _svg(figure, "Density of every masked weight")


def reliability(bins: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]], titles: Mapping[str, str]) -> str:
    """Accuracy by confidence, before and after calibration; the bars' width is the bins', their shade the share of samples."""
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(8.4, 3.0 * len(bins)), layout="constrained")
        grid = figure.subplots(len(bins), 2, squeeze=False)
        for row, (part, tables) in zip(grid, bins.items(), strict=True):
            for axis, (when, table) in zip(row, tables.items(), strict=True):
                total = sum(entry["count"] for entry in table) or 1
                for index, entry in enumerate(table):
                    shade = 0.25 + 0.75 * entry["count"] / total
                    left = index / len(table)
                    if entry["count"]:
                        axis.bar(
                            left, entry["accuracy"], 1 / len(table), align="edge", color=COLOURS[part], alpha=shade
                        )
                axis.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--")
                axis.set(
                    xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", title=f"{titles[part]}, {when}"
                )
        return _svg(figure, "Reliability diagrams before and after calibration; darker bars hold more samples")


def _svg(figure: Figure, label: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1
    )
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
