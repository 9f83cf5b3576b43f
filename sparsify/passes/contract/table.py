"""What `check_pass` found on each case, and how it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sparsify.ir import PHASES
from sparsify.passes.base import Effect, Kept, Preserves

_LEVELS = {Preserves.EXACTLY: "=", Preserves.NUMERICALLY: "~", Preserves.NOTHING: "x"}
_EFFECTS = {Effect.TRAIN_GRAPH: "T", Effect.EVAL_GRAPH: "E", Effect.NAMES: "N", Effect.WEIGHTS: "W"}
LEGEND = (
    "train outputs, train gradients, eval outputs, eval gradients: = exactly, ~ up to rounding, x changed, - no such phase;\n"
    "then effects: T train graph, E eval graph, N names, W weights; . nothing changed; - refused"
)


@dataclass(frozen=True)
class Row:
    """The result of a pass on one program.

    Attributes:
        step: the spelling of the pass.
        case: the name of the model.
        setup: the pipeline that made the program.
        changed: whether the pass changed it.
        refused: why the pass refused the program; empty if it did not.
        effects: what it changed.
        preserved: what it preserved, by phase; empty if it refused.
        broken: the promises that it broke.
    """

    step: str
    case: str
    setup: str
    changed: bool = False
    refused: str = ""
    effects: Effect = Effect.NONE
    preserved: Mapping[str, Kept] = field(default_factory=dict[str, Kept])
    broken: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Format the row as a cell of `table`, such as ``xx~x TEW``."""
        if not self.preserved:
            return "-"
        if not self.changed:
            return "."
        levels = "".join(
            _LEVELS[kept.outputs] + _LEVELS[kept.gradients] if (kept := self.preserved.get(phase)) else "--"
            for phase in PHASES
        )
        return f"{levels} {''.join(letter for effect, letter in _EFFECTS.items() if effect in self.effects)}"


def merged(rows: Iterable[Row]) -> dict[tuple[str, str], Row]:
    """Merge rows over all pipelines into one per pass and case, with every effect and the lowest level that was preserved."""
    found = dict[tuple[str, str], Row]()
    for row in rows:
        key = (row.step, row.case)
        found[key] = _joined(found[key], row) if key in found else row
    return found


def table(rows: Sequence[Row]) -> str:
    """Format rows as a table with one column per pass and one line per case."""
    cells = merged(rows)
    steps, cases = list(dict.fromkeys(step for step, _ in cells)), list(dict.fromkeys(case for _, case in cells))
    lines = [["case", *(str(number) for number in range(1, len(steps) + 1))]]
    lines += [[case, *(str(cells[step, case]) if (step, case) in cells else "" for step in steps)] for case in cases]
    lines.append(
        ["changed", *(str(sum(cells[step, case].changed for case in cases if (step, case) in cells)) for step in steps)]
    )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    shown = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    names = [f"{number:2d} {step}" for number, step in enumerate(steps, 1)]
    changed = sum(row.changed for row in cells.values())
    refused = sum(not row.preserved for row in cells.values())
    count = f"{len(cells)} pairs of a pass and a case: {changed} changed, {refused} refused, {len(cells) - changed - refused} as they were"
    return "\n".join((*names, LEGEND, "", *shown, "", count))


def _joined(a: Row, b: Row) -> Row:
    if not (a.preserved and b.preserved):
        return a if a.preserved else b
    preserved = {
        phase: Kept(min(kept.outputs for kept in found), min(kept.gradients for kept in found))
        for phase in PHASES
        if (found := [row.preserved[phase] for row in (a, b) if phase in row.preserved])
    }
    return Row(a.step, a.case, "", a.changed or b.changed, "", a.effects | b.effects, preserved, (*a.broken, *b.broken))
