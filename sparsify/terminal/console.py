"""Where the command prints what it found."""

from __future__ import annotations

from rich.console import Console

console = Console(markup=False, emoji=False)  # what is printed is data: a path may hold [/x], a pattern :O:
