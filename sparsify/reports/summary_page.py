"""A grid's summary as Markdown and as one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sparsify.pages import markup
from sparsify.pages.markup import Table
from sparsify.reports.headline import Headline
from sparsify.reports.populations import READING as POPULATIONS
from sparsify.reports.populations import Population, population_table
from sparsify.reports.summary import CONFIDENCE, CellResult, Summary
from sparsify.reports.summary_measures import measure
from sparsify.reports.summary_plots import against_evaluations, against_sparsity, against_steps

READING = (
    f"A cell holds the mean over n seeds ± one standard deviation and, below, the mean paired difference to the base over equal seeds "
    f"with its {CONFIDENCE:.0%} interval (Student's t on the differences). A row is called better or worse if the interval excludes 0. "
    f"ECE has 15 equal-width bins; before and after are without and with the calibration head. An evaluation is a forward and a "
    f"backward pass over one batch: one per step, and any others that a method needs; a forward pass without a backward pass is half."
)
REACHING = (
    "The target is the last validation accuracy of the base with the same seed. A share is what the row took to reach it, divided by "
    "what the base took to reach it first; a share below 1 is sooner."
)
Missing = Sequence[tuple[str, str]]
"""Names of cells that are not in the table, each with the reason."""


def markdown(title: str, summary: Summary, missing: Missing, found: Sequence[Population] = ()) -> str:
    """Return the table as Markdown, with its explanation, the clear differences and the missing cells."""
    parts = [f"# {title}", "", *_markdown_table("method", summary.table(summary.shown())), "", READING, ""]
    parts += [f"- {line}" for line in summary.sentences()]
    if any(row.reach for row in summary.rows):
        parts += ["", "## How soon", "", *_markdown_table("method", summary.reaches()), "", REACHING]
    if found:
        table = _markdown_table("method", population_table(found))
        parts += ["", "## Answers beside dense models", "", *table, "", POPULATIONS]
    if missing:
        parts += ["", "## Not in the table", "", *(f"- {cell}: {why}" for cell, why in missing)]
    return "\n".join(parts) + "\n"


def document(
    title: str,
    summary: Summary,
    cells: Sequence[CellResult],
    missing: Missing,
    recipe: str,
    found: Sequence[Population] = (),
) -> str:
    """Return the HTML page: table, sentences, plots, cells, and the recipe of the grid."""
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
        populations=_table("method", population_table(found)) if found else None,
        of_populations=POPULATIONS,
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
