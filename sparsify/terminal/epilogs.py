"""The text below the options in a command's help, and how to write a key that has no option."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rich.markup import escape


def examples(*lines: str, more: str = "") -> str:
    """Format example command lines and a closing remark."""
    return "\n\n".join(("[bold]Examples[/bold]", *(f"$ {escape(line)}" for line in lines), *([more] if more else [])))


def other_keys(*shown: str) -> str:
    """List the recipe keys that have no option of their own, with their defaults."""
    from sparsify.runs.keys import spelt
    from sparsify.runs.recipe import Recipe

    values = ((f.name, getattr(Recipe(), f.name)) for f in dataclasses.fields(Recipe))  # type: ignore[arg-type]
    pairs = (
        f"{spelt(name)}={'none' if value in (None, (), {}) else value}" for name, value in values if name not in shown
    )
    return "[bold]Keys for --set, with their defaults[/bold]\n\n" + escape(", ".join(pairs))


def as_setting(option: str, arguments: Sequence[str]) -> str | None:
    """Say how to write an option that is a recipe key or an option of a method; None if it is neither.

    Args:
        option: the option as typed, such as ``--lr``.
        arguments: all arguments as typed; the option's value is taken from them.
    """
    from sparsify.methods.registry import METHODS, WRAPPERS, options
    from sparsify.runs.keys import spelt as spelt_key
    from sparsify.runs.recipe import Recipe

    key = option.lstrip("-").replace("-", "_")
    if key in {f.name for f in dataclasses.fields(Recipe)}:
        spelt = spelt_key(key)
    elif any(key in options(name) for name in METHODS):
        spelt = f"method.options.{key}"
    elif wrapper := next((name for name in WRAPPERS if key in options(name)), None):
        spelt = f"method.options.{wrapper}.{key}"
    else:
        return None
    return f"--set {spelt}={_value_of(option, arguments)}"


def _value_of(option: str, arguments: Sequence[str]) -> str:
    for typed, following in zip(arguments, (*arguments[1:], ""), strict=True):
        name, equals, value = typed.partition("=")
        if name == option:
            given = value if equals else "" if following.startswith("--") else following
            return given or "VALUE"
    return "VALUE"
