"""A grid's summary as Markdown and as one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sparsify.reports import markup
from sparsify.reports.headline import Headline
from sparsify.reports.markup import Table
from sparsify.reports.summary import CONFIDENCE, CellResult, Summary
from sparsify.reports.summary_measures import measure
from sparsify.reports.summary_plots import against_evaluations, against_sparsity, against_steps

READING = (
    f"A cell holds the mean over n seeds ± one standard deviation and, below, the mean paired difference to the base over equal seeds "
    f"with its {CONFIDENCE:.0%} interval (Student's t on the differences). Better and worse are said where the interval leaves 0 out. "
    f"ECE has 15 equal-width bins; before and after are without and with the calibration head. An evaluation is a forward and a "
    f"backward pass of one batch: one per step, and what a method asks for beside it; a forward pass by itself is half of one."
)
REACHING = (
    "The target is the base's last validation accuracy, seed by seed; a share is what the row took to reach it first over what the "
    "base itself took. Below 1 is sooner."
)
Missing = Sequence[tuple[str, str]]
"""Cells that are not in the table, and why."""


def markdown(title: str, summary: Summary, missing: Missing) -> str:
    """Return the table, what it says, and what is missing."""
    parts = [f"# {title}", "", *_markdown_table("method", summary.table(summary.shown())), "", READING, ""]
    parts += [f"- {line}" for line in summary.sentences()]
    if any(row.reach for row in summary.rows):
        parts += ["", "## How soon", "", *_markdown_table("method", summary.reaches()), "", REACHING]
    if missing:
        parts += ["", "## Not in the table", "", *(f"- {cell}: {why}" for cell, why in missing)]
    return "\n".join(parts) + "\n"


def document(title: str, summary: Summary, cells: Sequence[CellResult], missing: Missing, recipe: str) -> str:
    """Return the HTML file: table, sentences, plots, cells, and the grid's recipe."""
    trust, *clear = summary.sentences()
    return markup.page(
        "grid.html",
        title=f"{title}: sparsify compare",
        name=title,
        figures=_table("method", summary.table(summary.shown())),
        reading=READING,
        trust=trust,
        clear=clear,
        missing=Table(("cell", "why"), missing, kind="text"),
        by_sparsity=against_sparsity(summary),
        by_step=against_steps(cells),
        by_evaluations=against_evaluations(cells),
        reaches=_table("method", summary.reaches()),
        reaching=REACHING,
        cells=Table(*_cells(summary, cells)),
        recipe=recipe,
    )


def _cells(summary: Summary, cells: Sequence[CellResult]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    measures = {key: measure(key) for key in summary.shown()}
    head = ("method", "sparsity", "seed", *(shown.label for shown in measures.values()))
    rows = []
    for cell in cells:
        found = (format(cell.figures[k], m.style) if k in cell.figures else "" for k, m in measures.items())
        rows.append((cell.name, "" if cell.sparsity is None else f"{cell.sparsity:g}", str(cell.seed), *found))
    return head, rows


def _table(corner: str, shown: Headline) -> Table:
    return Table((corner, *shown.columns), [(label, *cells) for label, cells in shown.rows])


def _markdown_table(corner: str, shown: Headline) -> list[str]:
    rows = ((label, *cells) for label, cells in shown.rows)
    lines: Iterable[Sequence[str]] = ((corner, *shown.columns), ("---",) * (len(shown.columns) + 1), *rows)
    return ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in line) + " |" for line in lines]
