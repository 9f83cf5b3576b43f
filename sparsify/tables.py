"""The tables that the command prints."""

from __future__ import annotations

import inspect
from typing import Any

from rich.table import Column, Table

from sparsify.ir import Program
from sparsify.methods.registry import METHODS, options
from sparsify.parts.patterns import SPELLINGS
from sparsify.passes import PASSES
from sparsify.reports import Headline


def weights(program: Program) -> Table:
    """What each weight costs, and which can be sparse; names in full, as options take them."""
    sites = program.maskable()
    longest = max((len(site.name) for site in sites), default=0)
    table = Table(Column("weight", min_width=longest), "kind", "shape", "MACs", "uses", "sparse?")
    for site in sites:
        shape = " x ".join(map(str, site.shape))
        table.add_row(site.name, site.kind, shape, f"{site.macs:,}", str(site.uses), site.skip or "yes")
    return table


def methods() -> Table:
    """The methods with their options."""
    table = Table("method", "what it does", "options (default)")
    for name, factory in METHODS.items():
        shown = [f"{k} ({'required' if v is inspect.Parameter.empty else _short(v)})" for k, v in options(name).items()]
        table.add_row(name, (inspect.getdoc(factory) or "").splitlines()[0], "\n".join(shown))
    return table


def passes() -> Table:
    """The passes with their options."""
    table = Table("pass", "what it does", "options (default): meaning")
    for name, cls in PASSES.items():
        shown = [f"{o.name} ({_short(o.default)}): {o.help}" for o in cls.options()]
        table.add_row(name, (inspect.getdoc(cls) or "").splitlines()[0], "\n".join(shown))
    return table


def patterns() -> Table:
    """The patterns."""
    table = Table("pattern", "which positions may be active together")
    for spelling, meaning in SPELLINGS.items():
        table.add_row(spelling, meaning)
    return table


def figures(corner: str, shown: Headline) -> Table:
    """The figures of a report, a line each."""
    table = Table(corner, *shown.columns)
    for label, cells in shown.rows:
        table.add_row(label, *cells)
    return table


def _short(value: Any) -> str:
    return getattr(value, "__name__", None) or (str(value) if value not in ((), None) else "none")
