"""Plots of a grid: figures against sparsity, and validation curves against steps and against counted evaluations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from sparsify.pages.plots import COLOURS, canvas, svg
from sparsify.reports.summary import CellResult, Summary, evaluations, mean_curve
from sparsify.reports.summary_measures import COSTS, OWN, measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#d9762b", "#3a9d6e", "#b5569b", "#b8941f", "#7b6bd6", "#d1495b", "#2f9bb0", "#8c7a5b")
"""Colours that differ from each other and from the blue of the dense baseline, and are visible on white and on near-black pages."""
LINES = ("-", "--", ":")
MARKS = "osD^vPX*"
COLUMNS = 2
Look = dict[str, Any]


def looks(names: Sequence[str]) -> dict[str, Look]:
    """Choose colour, line and mark for each name; the dense baseline is blue."""
    others = [name for name in names if name != "dense"]
    styles = itertools.cycle(itertools.product(LINES, zip(PALETTE, MARKS, strict=True)))
    found = {
        n: {"color": c, "linestyle": line, "marker": mark} for n, (line, (c, mark)) in zip(others, styles, strict=False)
    }
    return {"dense": {"color": COLOURS["dense"], "linestyle": "-", "marker": ""}, **found}


def against_sparsity(summary: Summary) -> Markup:
    """Plot each figure of the table against sparsity: means, with bars of one deviation. Methods without masks are horizontal lines."""
    varying = set(summary.shortlist())
    keys = [key for key in summary.shown() if key not in COSTS or key in varying]
    levels = sorted({row.sparsity for row in summary.rows if row.sparsity is not None})
    names = list(dict.fromkeys(row.name for row in summary.rows))
    style, lines = looks(names), math.ceil(len(keys) / COLUMNS)
    with canvas(2.7 * lines + 0.5) as figure:
        axes = figure.subplots(lines, COLUMNS, squeeze=False).flatten()
        for axis, key in zip(axes, keys, strict=False):
            for index, name in enumerate(names):
                offset = 0.16 * (index - (len(names) - 1) / 2) / max(len(names), 1)
                _levels(axis, summary, name, key, levels, style[name], offset)
            axis.set(ylabel=measure(key).label, xlabel="sparsity")
            axis.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
        for axis in axes[len(keys) :]:
            axis.set_axis_off()
        _legend(figure, axes[0])
        shown = ", ".join(measure(key).label for key in keys)
        return svg(
            figure, f"{shown} by sparsity: mean and one standard deviation over seeds, one line per method.", "s"
        )


def _levels(
    axis: Axes, summary: Summary, name: str, key: str, levels: Sequence[float], look: Look, offset: float
) -> None:
    found = {row.sparsity: row.spreads[key] for row in summary.rows if row.name == name and key in row.spreads}
    if None in found:
        mean, reach = found[None].mean, found[None].deviation or 0.0
        axis.axhline(mean, color=look["color"], linestyle=look["linestyle"], label=name, linewidth=1.2, zorder=1)
        axis.axhspan(mean - reach, mean + reach, color=look["color"], alpha=0.12, linewidth=0, zorder=0)
    elif found:
        places = [level for level in levels if level in found]
        axis.errorbar(
            [levels.index(level) + offset for level in places], [found[level].mean for level in places],
            yerr=[found[level].deviation or 0.0 for level in places],
            label=name, capsize=2, markersize=4, linewidth=1.2, **look,
        )  # fmt: skip


def against_steps(cells: Sequence[CellResult]) -> Markup:
    """Plot validation figures against optimizer steps, with a row of panels per sparsity; means over seeds."""
    return _curves(cells, lambda row: float(row["step"]), "step", "t")


def against_evaluations(cells: Sequence[CellResult]) -> Markup:
    """Plot validation figures against counted evaluations, with a row of panels per sparsity; means over seeds."""
    return _curves(cells, evaluations, "evaluations (a forward and a backward pass each)", "e")


def _curves(cells: Sequence[CellResult], x: Callable[[Mapping[str, Any]], float], label: str, prefix: str) -> Markup:
    masked = sorted({cell.sparsity for cell in cells if cell.sparsity is not None})
    levels: list[float | None] = [*masked] or [None]
    names = list(dict.fromkeys(cell.name for cell in cells))
    style, keys = looks(names), _measured(cells)
    with canvas(2.8 * len(levels) + 0.5) as figure:
        grid = figure.subplots(len(levels), 2, squeeze=False)
        for line, level in enumerate(levels):
            for column, (key, title) in enumerate(keys):
                axis, heights = grid[line, column], list[float]()
                for name in names:
                    group = [c for c in cells if c.name == name and c.sparsity in {level, None}]
                    places, values = mean_curve(group, x, key)
                    axis.plot(places, values, label=name, linewidth=1.2, **{**style[name], "marker": ""})
                    heights += values
                _focus(axis, heights, way=_way(cells, key))
                axis.set(xlabel=label, ylabel=title, title="" if level is None else f"sparsity {level:g}")
        _legend(figure, grid[0, 0])
        return svg(
            figure,
            f"{keys[0][1].capitalize()} and {keys[1][1][11:]} by {label}, means over seeds, one line per method.",
            prefix,
        )


def _measured(cells: Sequence[CellResult]) -> tuple[tuple[str, str], tuple[str, str]]:
    """Return key and title of the headline figure and of the loss on the validation part."""
    rows = [row for cell in cells for row in cell.history]
    figures = [key for key in (rows[-1] if rows else {}) if key.startswith("val_") and key != "val_loss"]
    if not figures or figures[0] == "val_accuracy":
        return (("val_accuracy", "validation accuracy"), ("val_loss", "validation NLL"))
    return (
        (figures[0], f"validation {figures[0].removeprefix('val_').replace('_', ' ')}"),
        ("val_loss", "validation loss"),
    )


def _way(cells: Sequence[CellResult], key: str) -> int:
    """Return which way a figure of the histories is better: 1 for up, -1 for down, 0 if unknown."""
    name, known = key.removeprefix("val_"), {key for cell in cells for key in cell.figures}
    held = (found for found in (name, *(f"{prefix}{name}" for prefix in OWN)) if found in known)
    return -1 if key == "val_loss" else measure(next(held, name)).better


def _focus(axis: Axes, heights: Sequence[float], *, way: int) -> None:
    """Zoom in on the end of the curves; if ``way`` says which values are worse, those of the first epochs are cut off."""
    if len(heights) < 10 or not way:
        return
    up = way > 0
    ordered = sorted(heights, reverse=not up)
    best, middle = ordered[-1], ordered[len(ordered) // 4]
    reach = abs(best - middle) or 1e-3
    axis.set_ylim(*((best - 1.6 * reach, best + 0.1 * reach) if up else (best - 0.1 * reach, best + 1.6 * reach)))


def _legend(figure: Figure, axis: Axes) -> None:
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=min(len(names), 5), fontsize=8)
