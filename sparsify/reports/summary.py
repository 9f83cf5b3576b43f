"""Summarises the cells of a grid: mean and deviation over seeds, and the paired difference to the base with its interval."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsify.figures.intervals import Difference, Spread, paired_difference, spread
from sparsify.reports.headline import Headline
from sparsify.reports.summary_measures import COSTS, MEASURES, OWN, SHORT, measure, unknown

CONFIDENCE = 0.95
ONE_SEED = "With one seed, there is no interval, and no row is called better or worse. Use three seeds or more."
UNDIRECTED = "No row is called better or worse: it is not known for any figure which way is better. Set task.options.lower_is_better."
JUDGED = ("better", "worse")


@dataclass(frozen=True)
class CellResult:
    """The results of a finished cell.

    Attributes:
        name: name of the method.
        bases: names of the methods that it is compared with; empty for the dense baseline.
        sparsity: sparsity of the cell; None if the method has no masks.
        seed: seed of the cell.
        figures: figures by key, from `sparsify.reports.summary_measures.figures`.
        history: rows of ``history.jsonl``.
    """

    name: str
    bases: Sequence[str]
    sparsity: float | None
    seed: int
    figures: Mapping[str, float]
    history: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Reach:
    """How soon a method reached the last validation accuracy of its base with the same seed (the loss, if there is no accuracy).

    Attributes:
        reached: number of seeds that reached it.
        of: number of seeds.
        steps, evaluations: what it took in those seeds, as a share of what the base took to reach the same value first; None if no seed
            reached it.
    """

    reached: int
    of: int
    steps: Spread | None
    evaluations: Spread | None


@dataclass(frozen=True)
class Row:
    """A method at one sparsity, compared with one of its bases: by figure, the spread over seeds and the paired difference to the base."""

    name: str
    base: str | None
    sparsity: float | None
    n: int
    spreads: Mapping[str, Spread]
    differences: Mapping[str, Difference]
    reach: Reach | None


@dataclass(frozen=True)
class Summary:
    """All rows of a grid, the dense baseline first, then by sparsity."""

    rows: tuple[Row, ...]

    def shown(self) -> list[str]:
        """Return the keys of the figures that a table shows."""
        present = list(dict.fromkeys(key for row in self.rows for key in row.spreads))
        quality = [key for key in MEASURES if key in present and key not in COSTS and not unknown(key)]
        quality += [key for key in present if key.startswith(tuple(OWN))]
        return [*quality, *filter(unknown, present), *(key for key in COSTS if key in present)]

    def shortlist(self) -> list[str]:
        """Return the keys of the figures that fit into a terminal."""
        counts = {row.spreads["evaluations"].mean for row in self.rows if "evaluations" in row.spreads}
        costs = ["evaluations"] if len(counts) > 1 else []
        return [key for key in self.shown() if key in SHORT or key.startswith(("auroc", *OWN)) or key in costs]

    def brief(self) -> Headline:
        """Return the table for a terminal, with three decimals; below a mean, the difference to the base and, if clear, its verdict."""
        keys = self.shortlist()
        rows = []
        for row in self.rows:
            label = f"{row.name} {_sparsity(row)}".rstrip() + (f"\n- {row.base}" if row.base else "")
            rows.append((label, tuple(_brief(row, key) for key in keys)))
        return Headline(tuple(measure(key).label for key in keys), tuple(rows))

    def table(self, keys: Sequence[str]) -> Headline:
        """Return a table with a row per method and sparsity; below mean and deviation, the difference to the base with its interval."""
        columns = ("sparsity", "n", "base", *(measure(key).label for key in keys))
        rows = []
        for row in self.rows:
            cells = (self._cell(row, key) for key in keys)
            rows.append((row.name, (_sparsity(row), str(row.n), row.base or "", *cells)))
        return Headline(columns, tuple(rows))

    def _cell(self, row: Row, key: str) -> str:
        if key not in row.spreads:
            return ""
        found, style = row.spreads[key], measure(key).style
        text = format(found.mean, style)
        if found.deviation is not None:
            text += f" ± {format(found.deviation, style)}"
        if key not in row.differences:
            return text
        difference = row.differences[key]
        text += f"\n{_signed(difference.mean, style)}"
        if difference.interval and not (key in COSTS and difference.deviation == 0):
            text += " [" + ", ".join(_signed(end, style) for end in difference.interval) + "]"
        said = [f"n = {difference.n}"] if difference.n != row.n else []
        said += ["one seed, no interval"] if difference.interval is None and key not in COSTS else []
        said += [verdict(key, difference)] if verdict(key, difference) in JUDGED else []
        return f"{text} {', '.join(said)}".rstrip()

    def reaches(self) -> Headline:
        """Return a table of how soon each method reached the accuracy of its base."""
        columns = ("sparsity", "base", "reached", "steps, share of the base's", "evaluations, share of the base's")
        rows = []
        for row in self.rows:
            if row.reach is not None:
                shares = (_share(row.reach.steps), _share(row.reach.evaluations))
                rows.append(
                    (row.name, (_sparsity(row), row.base or "", f"{row.reach.reached} of {row.reach.of}", *shares))
                )
        return Headline(columns, tuple(rows))

    def sentences(self) -> list[str]:
        """Return how far the intervals can be trusted, then every difference that is clear."""
        judged = [
            (row, key, row.differences[key])
            for row in self.rows
            for key in self.shown()
            if measure(key).better and key in row.differences and row.differences[key].interval
        ]
        clear = [_difference_sentence(*item) for item in judged if verdict(*item[1:]) in JUDGED]
        if not judged:
            several = any(found.interval for row in self.rows for found in row.differences.values())
            return [UNDIRECTED if several else ONE_SEED]
        expected = (1 - CONFIDENCE) * len(judged)
        trust = (
            f"{len(clear)} of {len(judged)} differences have a {CONFIDENCE:.0%} interval that leaves 0 out; about {expected:.0f} would if "
            f"nothing differed at all."
        )
        return [trust, *clear]

    def to_dict(self) -> dict[str, Any]:
        """Return all figures of all rows as JSON-compatible data."""
        return {"confidence": CONFIDENCE, "rows": [_row_dict(row) for row in self.rows]}


def verdict(key: str, difference: Difference) -> str:
    """Judge a difference to the base.

    Returns:
        ``one pair`` if there is no interval; ``not clear`` if the interval contains 0; ``better`` or ``worse``; ``higher`` or ``lower`` if
        it is not known which way the figure is better.
    """
    if difference.interval is None:
        return "one pair"
    if not difference.clear:
        return "not clear"
    up, way = difference.mean > 0, measure(key).better
    if way == 0:
        return "higher" if up else "lower"
    return "better" if up == (way > 0) else "worse"


def summarise(results: Sequence[CellResult]) -> Summary:
    """Summarise the finished cells of a grid; a cell is paired with the cell of its base with the same sparsity and seed.

    A base without masks is used for all sparsities. A method with several bases has a row for each of them.
    """
    cells = {(cell.name, cell.sparsity, cell.seed): cell for cell in results}
    groups: dict[tuple[str, float | None], list[CellResult]] = {}
    for cell in results:
        groups.setdefault((cell.name, cell.sparsity), []).append(cell)
    names = list(dict.fromkeys(cell.name for cell in results))
    order = sorted(groups, key=lambda group: (group[1] is not None, group[1] or 0.0, names.index(group[0])))
    rows = (
        (sorted(groups[group], key=lambda cell: cell.seed), base) for group in order for base in _bases(groups[group])
    )
    return Summary(tuple(_row(group, base, cells) for group, base in rows))


def _bases(group: Sequence[CellResult]) -> Sequence[str | None]:
    return group[0].bases or (None,)


def _row(
    group: Sequence[CellResult], base: str | None, cells: Mapping[tuple[str, float | None, int], CellResult]
) -> Row:
    first = group[0]
    pairs = [(cell, other) for cell in group if (other := _paired(cell, base, cells)) is not None]
    keys = [key for key in first.figures if all(key in cell.figures for cell in group)]
    shared = [key for key in keys if pairs and all(key in other.figures for _, other in pairs)]
    return Row(
        first.name,
        base,
        first.sparsity,
        len(group),
        {key: spread([cell.figures[key] for cell in group]) for key in keys},
        {
            key: paired_difference(
                [cell.figures[key] for cell, _ in pairs],
                [other.figures[key] for _, other in pairs],
                confidence=CONFIDENCE,
            )
            for key in shared
        },
        _reach(pairs) if pairs else None,
    )


def _paired(
    cell: CellResult, base: str | None, cells: Mapping[tuple[str, float | None, int], CellResult]
) -> CellResult | None:
    if base is None:
        return None
    return cells.get((base, cell.sparsity, cell.seed)) or cells.get((base, None, cell.seed))


def _reach(pairs: Sequence[tuple[CellResult, CellResult]]) -> Reach | None:
    shares: dict[str, list[float]] = {"steps": [], "evaluations": []}
    for cell, base in pairs:
        if not cell.history or not base.history:
            return None
        key, sign = ("val_accuracy", 1) if "val_accuracy" in base.history[-1] else ("val_loss", -1)
        target = sign * base.history[-1][key]
        own, others = (next((r for r in c.history if sign * r[key] >= target), None) for c in (cell, base))
        if own is not None and others is not None:
            shares["steps"].append(own["step"] / others["step"])
            shares["evaluations"].append(evaluations(own) / evaluations(others))
    spreads = [spread(values) if values else None for values in shares.values()]
    return Reach(len(shares["steps"]), len(pairs), *spreads)


def evaluations(row: Mapping[str, Any]) -> float:
    """Return the number of evaluations up to a row of ``history.jsonl``."""
    return float(row.get("evaluations", row["step"]))


def mean_curve(
    cells: Sequence[CellResult], x: Callable[[Mapping[str, Any]], float], key: str
) -> tuple[list[float], list[float]]:
    """Average ``x`` and a figure of the histories over cells, up to the end of the shortest history."""
    rows = list(zip(*(cell.history for cell in cells), strict=False))
    return [spread([x(r) for r in row]).mean for row in rows], [
        spread([float(r.get(key, "nan")) for r in row]).mean for row in rows
    ]


def _row_dict(row: Row) -> dict[str, Any]:
    measured = {}
    for key, found in row.spreads.items():
        difference = row.differences.get(key)
        paired = None if difference is None else {**dataclasses.asdict(difference), "verdict": verdict(key, difference)}
        measured[key] = {**dataclasses.asdict(found), "difference": paired}
    reach = None if row.reach is None else dataclasses.asdict(row.reach)
    head = {"name": row.name, "base": row.base, "sparsity": row.sparsity, "n": row.n}
    return {**head, "figures": measured, "reach": reach}


def _difference_sentence(row: Row, key: str, difference: Difference) -> str:
    style = measure(key).style
    low, high = (_signed(end, style) for end in difference.interval or (0.0, 0.0))
    where = "" if row.sparsity is None else f" at sparsity {row.sparsity:g}"
    return (
        f"{row.name}{where}: {measure(key).label} {verdict(key, difference)} than {row.base}'s by "
        f"{format(abs(difference.mean), style)} ({low} to {high}, {difference.n} seeds)."
    )


def _brief(row: Row, key: str) -> str:
    if key not in row.spreads:
        return ""
    found, style = row.spreads[key], measure(key).style.replace(".4f", ".3f")
    text = format(found.mean, style)
    if found.deviation:
        text += f" ± {format(found.deviation, style)}"
    if key not in row.differences:
        return text
    difference = row.differences[key]
    said = verdict(key, difference)
    return f"{text}\n{_signed(difference.mean, style)} {said if said in JUDGED else ''}".rstrip()


def _sparsity(row: Row) -> str:
    return "" if row.sparsity is None else f"{row.sparsity:g}"


def _share(found: Spread | None) -> str:
    if found is None:
        return ""
    return f"{found.mean:.2f}" + ("" if found.deviation is None else f" ± {found.deviation:.2f}")


def _signed(value: float, style: str) -> str:
    return format(value, f"+{style}")
