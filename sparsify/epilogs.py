"""What stands below the options in the help of a command."""

from __future__ import annotations

import dataclasses

from rich.markup import escape


def examples(*lines: str, more: str = "") -> str:
    """Command lines, and a closing remark."""
    return "\n\n".join(("[bold]Examples[/bold]", *(f"$ {escape(line)}" for line in lines), *([more] if more else [])))


def other_keys(*shown: str) -> str:
    """The recipe keys that have no option of their own, with their defaults."""
    from sparsify.recipe import Recipe

    values = ((f.name, getattr(Recipe(), f.name)) for f in dataclasses.fields(Recipe))  # type: ignore[arg-type]
    pairs = (f"{name}={'none' if value in (None, (), {}) else value}" for name, value in values if name not in shown)
    return "[bold]Keys for --set, with their defaults[/bold]\n\n" + escape(", ".join(pairs))
