"""Tables of prediction sets and of accepted answers, from figures of `sparsify.figures.sets`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Rows = list[tuple[str, ...]]
SETS, ACCEPT = "prediction_set", "accept"
"""Names of the outputs, and of their figures in ``metrics.json``."""
LABELS: Mapping[tuple[str, str], tuple[str, str]] = {
    (SETS, "coverage"): ("coverage of prediction sets", ".4f"),
    (SETS, "mean_size"): ("mean size of prediction sets", ".3f"),
    (SETS, "median_size"): ("median size of prediction sets", "g"),
    (SETS, "singletons"): ("sets of one class", ".4f"),
    (SETS, "empty"): ("empty sets", ".4f"),
    (ACCEPT, "coverage"): ("share of accepted answers", ".4f"),
    (ACCEPT, "risk"): ("share of wrong answers among the accepted", ".4f"),
}
"""Label and format of each figure, by output and key, in order."""
INTERVALS = {
    (SETS, "coverage"): "interval",
    (ACCEPT, "coverage"): "coverage_interval",
    (ACCEPT, "risk"): "risk_interval",
}
SIZE_COLUMNS = ("", "size", "samples", "coverage")


def figure_rows(
    found: Sequence[Row], keys: Sequence[tuple[str, str]] = tuple(LABELS), *, intervals: bool = False
) -> Rows:
    """Return a row per figure that some file has, with a cell per file, empty for a file that lacks it.

    Args:
        found: figures of the files, with ``prediction_set`` and ``accept`` where they have these outputs.
        keys: the figures, as in `LABELS`.
        intervals: write the 95 % interval after a share that has one.
    """
    rows: Rows = []
    for key in keys:
        if any(row.get(key[0]) for row in found):
            rows.append((LABELS[key][0], *(_cell(row.get(key[0]) or {}, key, intervals=intervals) for row in found)))
    return rows


def _cell(row: Row, key: tuple[str, str], *, intervals: bool) -> str:
    value, style = row.get(key[1]), LABELS[key][1]
    if value is None:
        return ""
    ends = row.get(INTERVALS.get(key, "")) if intervals else None
    return format(value, style) + (f" ({format(ends[0], style)} to {format(ends[1], style)})" if ends else "")


def size_rows(found: Mapping[str, Row]) -> Rows:
    """Return the coverage of prediction sets by their size; ``found`` has the figures of each file by its title."""
    return [
        (title, str(row["size"]), f"{row['samples']:,}", f"{row['coverage']:.4f}")
        for title, figures in found.items()
        for row in (figures.get(SETS) or {}).get("sizes", ())
    ]
