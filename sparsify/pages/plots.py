"""Plots as inline SVG: deterministic, on a transparent ground, text in the colour of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#123456"
"""Stands for the page's text colour until the SVG is written."""
COLOURS = {"dense": "#4f8fc9", "against": "#4f8fc9", "model": "#d9762b"}
"""Colours that colour-blind readers can tell apart, and that are visible on both a white and a near-black page."""
STYLE = {
    "svg.hashsalt": "sparsify",
    "svg.fonttype": "none",
    "text.parse_math": False,  # names are names: a $ in one is no formula
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
}
WIDTH = 8.4
MOST_NAMES = 12
"""Largest number of lines that a plot names; if there are more, only some are named."""
OF_THE_UNKNOWN = ("unknown_mass", "alpha")
"""Readings that `unknown` draws."""
History = Sequence[Mapping[str, Any]]
Bins = Sequence[Mapping[str, Any]]


@contextmanager
def canvas(height: float) -> Generator[Figure]:
    """An empty figure of the page's width in the page's style, which holds within the block. Loads matplotlib.

    Args:
        height: in inches.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        yield Figure(figsize=(WIDTH, height), layout="constrained")


def shade(share: float) -> Any:
    """Return a colour of the scale from dark blue at 0 to yellow at 1."""
    import matplotlib as mpl

    return mpl.colormaps["viridis"](share)


def curves(histories: Mapping[str, History], titles: Mapping[str, str], figure_key: str = "accuracy") -> Markup:
    """Plot training loss and a figure of the validation part, such as accuracy, by step, with one line per model."""
    key, name = f"val_{figure_key}", figure_key.replace("_", " ")
    with canvas(3.2) as figure:
        loss, accuracy = figure.subplots(1, 2)
        ends = []
        for part, rows in histories.items():
            steps, marker = [row["step"] for row in rows], "." if len(rows) < 40 else ""
            look = {"color": COLOURS[part], "marker": marker, "zorder": 3 if part == "model" else 2}
            loss.plot(steps, [row["loss"] for row in rows], label=f"{titles[part]}, training", **look)
            loss.plot(
                steps, [row["val_loss"] for row in rows], label=f"{titles[part]}, validation",
                **{**look, "marker": "", "linestyle": ":"},
            )  # fmt: skip
            accuracy.plot(steps, [row.get(key, float("nan")) for row in rows], label=titles[part], **look)
            if rows and key in rows[-1]:
                ends.append(f"{titles[part]} ends at {rows[-1][key]:.4f}")
        loss.set(xlabel="step", ylabel="loss", yscale="log" if _positive(histories) else "linear")
        loss.legend(loc="upper right", fontsize=8)
        accuracy.set(xlabel="step", ylabel=f"validation {name}")
        accuracy.legend(loc="lower right")
        return svg(figure, f"Loss and validation {name} by optimizer step. Validation {name}: {'; '.join(ends)}.", "c")


def _positive(histories: Mapping[str, History]) -> bool:
    return all(row[key] > 0 for rows in histories.values() for row in rows for key in ("loss", "val_loss"))


def readings(history: History) -> Markup:
    """Figures of the method's own by step, one line each, less those that `unknown` draws; empty where it has none."""
    found = dict.fromkeys(name for row in history for name in row.get("readings", {}))
    names = [name for name in found if name not in OF_THE_UNKNOWN]
    if not names:
        return Markup()
    with canvas(2.8) as figure:
        axis, ends = figure.subplots(), []
        for index, name in enumerate(names):
            points = [(row["step"], row["readings"][name]) for row in history if name in row.get("readings", {})]
            colour = COLOURS["model"] if len(names) == 1 else shade(0.15 + 0.7 * index / len(names))
            axis.plot(*zip(*points, strict=True), marker="." if len(points) < 40 else "", color=colour, label=name)
            ends.append(f"{name} ends at {points[-1][1]:.4f}")
        axis.set(xlabel="step", ylabel=names[0] if len(names) == 1 else "")
        if 1 < len(names) <= MOST_NAMES:
            axis.legend(fontsize=8)
        shown = "; ".join(ends[:MOST_NAMES])
        return svg(figure, f"What the method did, by optimizer step: {shown}.", "w")


def densities(layers: Sequence[Mapping[str, Any]]) -> Markup:
    """Plot the density of every masked weight as bars."""
    masked = [layer for layer in layers if layer["active"] is not None]
    shares = [layer["active"] / layer["maskable"] for layer in masked]
    with canvas(0.8 + 0.24 * max(len(masked), 2)) as figure:
        axis = figure.subplots()
        bars = axis.barh(range(len(masked)), shares, color=COLOURS["model"], height=0.7)
        axis.bar_label(bars, [f"{share:.3f}" for share in shares], padding=3, fontsize=8, color=INK)
        axis.set_yticks(range(len(masked)), [layer["name"] for layer in masked])
        axis.set(xlabel="density", xlim=(0, 1.08))
        axis.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axis.invert_yaxis()
        lowest, highest = min(shares), max(shares)
        return svg(figure, f"Density of each of {len(masked)} masked weights, from {lowest:.3f} to {highest:.3f}.", "d")


def masks(history: History) -> Markup:
    """Coverage and turnover of every masked weight by step, one line per weight, from the first (dark) to the last (light)."""
    rows = [row for row in history if row.get("coverage")]
    names, steps = list(rows[-1]["coverage"]), [row["step"] for row in rows]
    with canvas(3.2) as figure:
        axes = figure.subplots(1, 2)
        shown = names if len(names) <= MOST_NAMES else [names[0], names[len(names) // 2], names[-1]]
        for index, name in enumerate(names):
            colour = shade(0.15 + 0.7 * index / max(len(names) - 1, 1))
            for axis, key in zip(axes, ("coverage", "turnover"), strict=True):
                values = [row[key][name] for row in rows]
                axis.plot(steps, values, color=colour, marker=".", label=name if name in shown else None)
        axes[0].set(xlabel="step", ylabel="coverage", ylim=(0, 1.03))
        axes[1].set(xlabel="step", ylabel="turnover", ylim=(0, None))
        axes[0].legend(fontsize=8)
        ends = [rows[-1]["coverage"][name] for name in names]
        return svg(
            figure,
            f"Coverage and turnover of each of {len(names)} masked weights by optimizer step. Coverage ends between {min(ends):.3f} and "
            f"{max(ends):.3f}.",
            "m",
        )


def reliability(bins: Mapping[str, Mapping[str, Bins]], titles: Mapping[str, str]) -> Markup:
    """Plot accuracy by confidence over a histogram of confidences, before and after calibration, with one row per model."""
    whens = _whens(bins.values())
    with canvas(3.4 * len(bins)) as figure:
        grid = figure.subplots(2 * len(bins), len(whens), squeeze=False, height_ratios=[3, 1] * len(bins), sharex=True)
        for index, (part, tables) in enumerate(bins.items()):
            for column, when in enumerate(whens):
                if when not in tables:
                    grid[2 * index, column].set_axis_off()
                    grid[2 * index + 1, column].set_axis_off()
                    continue
                _diagram(grid[2 * index, column], tables[when], COLOURS[part], f"{titles[part]}, {when}")
                _histogram(grid[2 * index + 1, column], tables[when], COLOURS[part])
        label = "Reliability diagrams before and after calibration, with the number of samples in each bin."
        return svg(
            figure,
            f"{label} The dashed line is perfect calibration; the dots are each bin's confidence and accuracy.",
            "r",
        )


def _whens(tables: Iterable[Collection[str]]) -> list[str]:
    """Return ``before`` and ``after``, or the one of them that occurs."""
    found = list(tables)
    return [when for when in ("before", "after") if any(when in table for table in found)]


def _diagram(axis: Axes, table: Bins, colour: str, name: str) -> None:
    filled = [(index / len(table), row) for index, row in enumerate(table) if row["count"]]
    left, heights = [edge for edge, _ in filled], [row["accuracy"] for _, row in filled]
    axis.bar(left, heights, 1 / len(table), align="edge", color=colour, alpha=0.45, linewidth=0)
    axis.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--")
    axis.plot([row["confidence"] for _, row in filled], heights, ".", color=colour)
    axis.set(xlim=(0, 1), ylim=(0, 1.03), ylabel="accuracy", title=name)


def _histogram(axis: Axes, table: Bins, colour: str) -> None:
    width, highest = 1 / len(table), max((row["count"] for row in table), default=0) or 1
    axis.bar([i * width for i in range(len(table))], [row["count"] for row in table], width, align="edge", color=colour)
    for index, row in enumerate(table):
        if row["count"]:
            axis.text((index + 0.5) * width, row["count"], str(row["count"]), ha="center", va="bottom", fontsize=6)
    axis.set(ylim=(0, 1.35 * highest), xlabel="confidence", ylabel="samples")
    axis.tick_params(labelbottom=True)


def risk_coverage(report: Mapping[str, Any], titles: Mapping[str, str]) -> Markup:
    """Plot the share of wrong answers by the share of test samples answered, the most confident first, before and after calibration.

    Args:
        report: content of ``metrics.json``.
        titles: by part; a line each.
    """
    with canvas(3.2) as figure:
        whens, said = _whens(report[part]["risk_coverage"] for part in titles), list[str]()
        axes = figure.subplots(1, len(whens), sharey=True, squeeze=False)[0]
        for axis, when in zip(axes, whens, strict=True):
            for part, name in titles.items():
                if when not in report[part]["risk_coverage"]:
                    continue
                curve, area = report[part]["risk_coverage"][when], report[part][f"aurc_{when}"]
                shares, risks = [0.0, *curve["coverage"]], [curve["risk"][0], *curve["risk"]]
                label = f"{name}, AURC {area:.5f}"
                axis.plot(shares, risks, drawstyle="steps-pre", color=COLOURS[part], label=label)
                said.append(f"{label} {when} calibration")
            axis.set(xlabel="share of samples answered", title=f"{when} calibration", xlim=(0, 1))
            axis.legend(loc="upper left", fontsize=8)
        axes[0].set(ylabel="share of wrong answers", ylim=(0, None))
        return svg(figure, f"Risk-coverage curves on the test samples: {'; '.join(said)}.", "s")


def ood(report: Mapping[str, Any], titles: Mapping[str, str], score: Mapping[str, str]) -> Markup:
    """Histograms of each model's score on test inputs and on each set of out-of-distribution inputs, as shares of each.

    Args:
        report: content of ``metrics.json``.
        titles: by part; a column each.
        score: by part, which one is shown.
    """
    sets = list(report["model"]["ood"])
    with canvas(2.6 * len(sets)) as figure:
        grid, said = figure.subplots(len(sets), len(titles), squeeze=False), list[str]()
        for row, name in enumerate(sets):
            for column, part in enumerate(titles):
                found = report[part]["ood"][name]["scores"][score[part]]
                table, axis = found["histogram"], grid[row, column]
                count = len(table["inside"])
                width = (table["high"] - table["low"]) / count or 1.0
                edges = [table["low"] + i * width for i in range(count)]
                for side, colour, label in (("inside", INK, "test"), ("outside", COLOURS[part], name)):
                    shares = [value / max(sum(table[side]), 1) for value in table[side]]
                    axis.bar(edges, shares, width, align="edge", color=colour, alpha=0.45, linewidth=0, label=label)
                axis.set(xlabel=score[part], ylabel="share", title=f"{titles[part]}, AUROC {found['auroc']:.4f}")
                axis.legend(fontsize=8)
                said.append(f"{titles[part]} against {name}: AUROC {found['auroc']:.4f} by {score[part]}")
        return svg(figure, f"Scores of test inputs and of out-of-distribution inputs. {'; '.join(said)}.", "o")


def unknown(rows: History) -> Markup:
    """Probability of the unknown, a mean over training batches and over validation samples, and alpha where there is one, by step."""
    with canvas(2.8) as figure:
        found = [{**row, **row.get("readings", {})} for row in rows]
        drawn = [key for key in ("unknown_mass", "val_unknown", "alpha") if key in found[-1]]
        axes = figure.subplots(1, 1 + ("alpha" in drawn), squeeze=False)[0]
        steps = [row["step"] for row in rows]
        looks = {"unknown_mass": ("training", "-"), "val_unknown": ("validation", ":"), "alpha": ("alpha", "-")}
        for key in drawn:
            name, style = looks[key]
            axis = axes[1] if key == "alpha" else axes[0]
            axis.plot(steps, [row[key] for row in found], label=name, color=COLOURS["model"], linestyle=style)
        axes[0].set(xlabel="step", ylabel="probability of the unknown", yscale="log")
        axes[0].legend(fontsize=8)
        if "alpha" in drawn:
            axes[1].set(xlabel="step", ylabel="alpha")
        ends = ", ".join(f"{looks[key][0]} {found[-1][key]:.3g}" for key in drawn)
        return svg(figure, f"Probability of the unknown class by optimizer step. At the end: {ends}.", "u")


def svg(figure: Figure, label: str, prefix: str) -> Markup:
    """Return the figure as an ``<svg>`` element with a text for those who cannot see it; ``prefix`` keeps its ids apart on the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    head, rest = text.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    head = head.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
    rest = re.sub(r"\s*<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    rest = re.sub(r'(\bid="|\bxlink:href="#|url\(#)', rf"\1{prefix}-", rest)
    return Markup(f"{head}>{rest}")  # matplotlib escapes names; the label is escaped above
