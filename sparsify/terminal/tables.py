"""The tables that the command prints."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Column, Table

from sparsify.exporters.int8 import Int8
from sparsify.heads import HEADS, fitting
from sparsify.ir import Program
from sparsify.ir.sites import mostly_dense
from sparsify.methods.registry import METHODS, WRAPPERS, options
from sparsify.parts.allocation import ALLOCATIONS
from sparsify.parts.patterns import PATTERNS
from sparsify.passes import PASSES
from sparsify.reports import Headline
from sparsify.reports.digits import three_digits
from sparsify.reports.headline import uncounted
from sparsify.reports.summary import Summary
from sparsify.tasks import TASKS


def weights(program: Program, forms: Mapping[str, str] | None = None) -> Table:
    """Return what each weight costs, which can be sparse, and how training stores it; names in full, as options take them.

    Args:
        program: traced.
        forms: by weight, how training would store it (`SparseTrainer.forms`); None or empty: no such column.
    """
    sites = program.maskable()
    longest = max((len(site.name) for site in sites), default=0)
    table = Table(Column("weight", min_width=longest), "kind", "shape", "MACs", "uses", "sparse?")
    if forms:
        table.add_column("in training")
    for site in sites:
        shape = " x ".join(map(str, site.shape))
        row = (site.name, site.kind, shape, f"{site.macs:,}", str(site.uses), site.skip or "yes")
        table.add_row(*row, *([forms.get(site.name, "dense")] if forms else []))
    return table


def whole(program: Program) -> str:
    """Describe how much of the model is or may become sparse, what stays dense, and which operators are not counted."""
    costs, sites = program.costs(), program.maskable()
    able = sum(math.prod(site.shape) for site in sites if site.skip is None)
    said = [f"{able:,} of all {costs.params:,} weights get masks by default."]
    if costs.maskable:
        said = [
            f"{costs.maskable:,} of all {costs.params:,} weights have masks; {100 * costs.model_density:.1f} % of all are active."
        ]
    said += [found] if (found := mostly_dense(program)) else []
    said += [uncounted(costs.unknown)] if costs.unknown else []
    return "\n".join(said)


def methods() -> Table:
    """Return the methods and the wrappers with their options."""
    table = Table("method", "what it does", "options (default)")
    for name, factory in {**METHODS, **WRAPPERS}.items():
        shown = [f"{k} ({'required' if v is inspect.Parameter.empty else _short(v)})" for k, v in options(name).items()]
        spelt = f"{name}(...)" if name in WRAPPERS else name
        table.add_row(spelt, _summary(factory, METHODS.origin(name) or WRAPPERS.origin(name)), "\n".join(shown))
    return table


def passes() -> Table:
    """Return the passes with their options."""
    table = Table("pass", "what it does", "options (default): meaning")
    for name, cls in PASSES.items():
        shown = [f"{o.name} ({_short(o.default)}): {o.help}" for o in cls.options()]
        table.add_row(name, _summary(cls, PASSES.origin(name)), "\n".join(shown))
    return table


def tasks() -> Table:
    """Return the tasks, the targets they take and the calibration heads that fit them, the usual one first."""
    table = Table("task", "what it does", "targets", "heads")
    for name, cls in TASKS.items():
        table.add_row(name, _summary(cls, TASKS.origin(name)), cls.targets, ", ".join(fitting(cls)))
    return table


def heads() -> Table:
    """Return the heads, with the values of their fields where they have some, the tasks they fit and the outputs they add."""
    table = Table("head", "what it does", "tasks", "outputs")
    for name, head in HEADS.items():
        fits = [task for task, cls in TASKS.items() if name in fitting(cls)]
        table.add_row(head.spec, _summary(head, HEADS.origin(name)), ", ".join(fits), ", ".join(head.outputs))
    return table


def patterns() -> Table:
    """Return the patterns."""
    table = Table("pattern", "which positions may be active together")
    for name, spelling in PATTERNS.items():
        for shown, meaning in spelling.shown.items():
            table.add_row(shown, _with_origin(meaning, PATTERNS.origin(name)))
    return table


def allocations() -> Table:
    """Return the allocations."""
    table = Table("allocation", "what each weight keeps")
    for name, function in ALLOCATIONS.items():
        table.add_row(name, _summary(function, ALLOCATIONS.origin(name)))
    return table


def _summary(value: object, origin: str) -> str:
    """Return the first line of a docstring, and the distribution of the plug-in that brought it."""
    return _with_origin(next(iter((inspect.getdoc(value) or "").splitlines()), ""), origin)


def _with_origin(text: str, origin: str) -> str:
    return f"{text} (from {origin})".strip() if origin else text


def figures(corner: str, shown: Headline) -> Table:
    """Show the figures of a report, one per line; in a narrow terminal, cells wrap and are never cut."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in (corner, *shown.columns):
        table.add_column(column, overflow="fold")
    for label, cells in shown.rows:
        table.add_row(label, *cells)
    return table


def comparison(summary: Summary) -> Table:
    """Return a grid: one row per method and sparsity; figures and, below, differences to the base."""
    shown = summary.brief()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 1, 0))
    for column in ("method", *shown.columns):
        table.add_column(column, overflow="fold")
    for label, cells in shown.rows:
        table.add_row(label, *cells)
    return table


def int8(found: Int8, measured: Mapping[str, Any]) -> Table:
    """List the files that were timed for int8, fastest first, and which of them was written."""
    table = Table("form", "layers in int8", "ms a call", "")
    for trial in found.trials:
        table.add_row(
            trial.name,
            f"{trial.integers} of {len(trial.layers)}",
            three_digits(trial.milliseconds),
            f"written, {measured['bytes']:,} bytes" if trial == found.chosen else found.passed_over.get(trial.name, ""),
        )
    for name in found.passed_over.keys() - {trial.name for trial in found.trials}:
        table.add_row(name, "", "", found.passed_over[name])
    return table


def _short(value: Any) -> str:
    return getattr(value, "__name__", None) or (str(value) if value not in ((), None) else "none")
