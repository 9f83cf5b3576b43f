"""The commands that list what is installed: one per registry, with what plug-ins add."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import typer

from sparsify.terminal.console import console

LISTS: Mapping[str, str] = {
    "methods": "List the methods with their options, and the wrappers to be written around one: cigl(agent(rigl)).\n\n"
    "Your own are written file.py:function: cigl(my.py:mest).",
    "passes": "List the passes with their options.",
    "tasks": "List the tasks, the targets they take and the calibration heads that fit them.",
    "heads": "List the calibration heads, the tasks they fit and the outputs they add.",
    "patterns": "List the patterns.",
    "allocations": "List the allocations: how a density is split over the weights.",
}
"""Each command with its help."""


def add_lists(app: typer.Typer) -> None:
    """Add the commands to the application; tables and what they list are imported when one is called."""
    for name, told in LISTS.items():
        app.command(name, help=told, rich_help_panel="Lists")(_lister(name))


def _lister(name: str) -> Callable[[], None]:
    def shown() -> None:
        from sparsify.terminal import tables

        console.print(getattr(tables, name)())

    return shown
