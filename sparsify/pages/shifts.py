"""Figures under shift as rows of text and as a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from sparsify.pages.markup import Table
from sparsify.pages.plots import COLOURS, canvas, svg

Row = Mapping[str, Any]
Shift = Mapping[str, Any]
"""Figures by kind of shift, a list by severity, and ``unchanged``, those of the inputs as they are (`sparsify.figures.shift`)."""
Rows = list[tuple[str, ...]]
UNCHANGED = "unchanged"
SINGLE: Mapping[str, tuple[str, str]] = {
    "ood_score": ("mean ood_score", ".4g"),
    "set_coverage": ("coverage of sets", ".4f"),
    "set_size": ("size of sets", ".3f"),
    "accepted": ("accepted", ".4f"),
    "accepted_risk": ("wrong of the accepted", ".4f"),
}
"""Label and format of the figures of further outputs."""
SHORT = (1, 3, 5)
"""Severities of the short table."""


def kinds(found: Shift) -> list[str]:
    """Return the kinds of shift that were measured."""
    return [kind for kind in found if kind != UNCHANGED]


def _last(row: Row) -> Row:
    """Return the figures by the probabilities that count: after calibration, where there are some."""
    return row["after"] if "after" in row else row["before"]


def _steps(found: Shift) -> Iterator[tuple[str, int, Row]]:
    """Yield kind, severity and figures; severity 0 for the inputs as they are."""
    yield UNCHANGED, 0, found[UNCHANGED]
    for kind in kinds(found):
        for severity, row in enumerate(found[kind], 1):
            yield kind, severity, row


def short_columns(titles: Mapping[str, str]) -> tuple[str, ...]:
    """Return the titles of `short_rows`; ``titles`` by file."""
    names = ("accuracy", "confidence", "ECE")
    several = len(titles) > 1
    return ("inputs", *(f"{name}, {title}" if several else name for title in titles.values() for name in names))


def short_rows(found: Mapping[str, Shift]) -> Rows:
    """Return accuracy, mean confidence and ECE of each file at severities 1, 3 and 5 of each kind; ``found`` by file."""
    rows: Rows = []
    for steps in zip(*(_steps(shift) for shift in found.values()), strict=True):
        kind, severity, _ = steps[0]
        if severity in (0, *SHORT):
            cells = [f"{_last(row)[key]:.4f}" for *_, row in steps for key in ("accuracy", "confidence", "ece")]
            rows.append((f"{kind} {severity or ''}".rstrip(), *cells))
    return rows


def columns(found: Mapping[str, Shift]) -> tuple[str, ...]:
    """Return the titles of `rows`."""
    return ("inputs", "severity", "file", *(name for name, *_ in _columns(found)))


def rows(found: Mapping[str, Shift], titles: Mapping[str, str]) -> Rows:
    """Return every figure of every file, kind and severity; ``found`` and ``titles`` by file."""
    shown: Rows = []
    for steps in zip(*(_steps(shift) for shift in found.values()), strict=True):
        for part, (kind, severity, row) in zip(found, steps, strict=True):
            cells = (_cell(row, where, key, style) for _, where, key, style in _columns(found))
            shown.append((kind, str(severity or ""), titles[part], *cells))
    return shown


def _columns(found: Mapping[str, Shift]) -> list[tuple[str, str, str, str]]:
    """Return title, table, key and format of each column; the table is empty for figures of further outputs."""
    first = [shift[UNCHANGED] for shift in found.values()]
    whens = [when for when in ("before", "after") if any(when in row for row in first)]
    names = (("accuracy", "accuracy"), ("confidence", "mean confidence"), ("ece", "ECE"))
    listed = [
        (f"{name}, {when}" if len(whens) > 1 else name, when, key, ".4f") for key, name in names for when in whens
    ]
    further = ((label, "", key, style) for key, (label, style) in SINGLE.items() if any(key in row for row in first))
    return [*listed, *further]


def _cell(row: Row, where: str, key: str, style: str) -> str:
    value = (row.get(where) or {}).get(key) if where else row.get(key)
    return "" if value is None else format(value, style)


def sentence(found: Shift) -> str:
    """Return at which shift the confidence exceeds the accuracy most, or that it does nowhere."""
    gap, kind, severity, row = max(
        (
            (_last(row)["confidence"] - _last(row)["accuracy"], kind, severity, row)
            for kind, severity, row in _steps(found)
        ),
        key=lambda step: step[0],
    )
    if gap <= 0:
        return "The mean confidence is at most the accuracy at every measured shift."
    if not severity:
        return "The mean confidence exceeds the accuracy most for the inputs as they are."
    ours, plain = _last(row), _last(found[UNCHANGED])
    return (
        f"Confidence exceeds accuracy most with {kind} of severity {severity}: mean confidence {ours['confidence']:.4f}, accuracy "
        f"{ours['accuracy']:.4f}; for the inputs as they are, {plain['confidence']:.4f} and {plain['accuracy']:.4f}."
    )


def section(found: Mapping[str, Shift], titles: Mapping[str, str], words: str) -> dict[str, Any]:
    """Return what the template ``shift.html`` shows: plot, table, and ``words``, which say how the inputs were changed."""
    shown = {part: titles[part] for part in found}
    return {"plot": plot(found, shown), "figures": Table(columns(found), rows(found, shown)), "words": words}


def plot(found: Mapping[str, Shift], titles: Mapping[str, str]) -> Markup:
    """Plot accuracy and mean confidence, and ECE before and after calibration, by severity, a column per kind.

    Where a file has prediction sets or accepts answers, a third row has coverage, the share accepted and the risk.

    Args:
        found: figures by file.
        titles: by file.
    """
    names, said = kinds(next(iter(found.values()))), list[str]()
    further = [
        key for key in ("set_coverage", "accepted", "accepted_risk") if any(key in s[UNCHANGED] for s in found.values())
    ]
    with canvas(5.4 if not further else 7.8) as figure:
        grid = figure.subplots(3 if further else 2, len(names), squeeze=False, sharex=True, sharey="row")
        for column, kind in enumerate(names):
            for part, title in titles.items():
                steps, colour = [found[part][UNCHANGED], *found[part][kind]], COLOURS[part]
                for key, line in (("accuracy", "-"), ("confidence", "--")):
                    values = [_last(row)[key] for row in steps]
                    grid[0, column].plot(values, line, marker=".", color=colour, label=f"{title}, {key}")
                for when, line in (("before", ":"), ("after", "-")):
                    if when in steps[0]:
                        values = [row[when]["ece"] for row in steps]
                        grid[1, column].plot(values, line, marker=".", color=colour, label=f"{title}, {when}")
                for key, line in zip(further, ("-", "--", ":"), strict=False):
                    if key in steps[0]:
                        values = [float("nan") if row[key] is None else row[key] for row in steps]
                        grid[2, column].plot(values, line, marker=".", color=colour, label=f"{title}, {SINGLE[key][0]}")
                last = _last(steps[-1])
                said.append(
                    f"{title}, {kind} of severity {len(steps) - 1}: accuracy {last['accuracy']:.4f}, confidence {last['confidence']:.4f}, "
                    f"ECE {last['ece']:.4f}"
                )
            grid[0, column].set(title=kind)
            grid[-1, column].set(xlabel="severity", xticks=range(1 + len(found[next(iter(found))][kind])))
        for axis, label in zip(grid[:, 0], ("accuracy, mean confidence", "ECE", "share"), strict=False):
            axis.set(ylabel=label, ylim=(0, None))
            axis.legend(fontsize=7)
        return svg(figure, f"Confidence under shift, by severity; 0 is the inputs as they are. {'; '.join(said)}.", "x")
