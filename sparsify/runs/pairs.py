"""Values of a recipe as the command line gives them: ``--set table.key=value``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsify.errors import RecipeError
from sparsify.runs.keys import COLUMNS, LISTS, OPTIONS, field_of


def parse_pairs(items: Sequence[str]) -> dict[str, Any]:
    """Parse ``table.key=value`` texts into overrides for `parse_recipe`.

    ``method.options.key=value`` is an option of the method, and ``method.options.wrapper.key=value`` an option of a wrapper. A value in
    brackets is a list: ``[0.5, 1]``.

    Raises:
        RecipeError: If an item is not of that form.
    """
    found: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals:
            raise RecipeError(f"--set {item!r} should be table.key=value, such as train.lr=0.1.")
        words = key.strip().split(".")
        rest = words[2:]
        try:
            key = field_of(".".join(words[:2]))
        except RecipeError as error:
            raise RecipeError(f"--set {item!r}: {error}") from error
        if key in OPTIONS and rest:
            *layer, option = rest
            table = found.setdefault(key, {})
            for name in layer:
                table = table.setdefault(name, {})
                if not isinstance(table, dict):
                    raise RecipeError(
                        f"--set {item!r}: {name!r} was given a value before. It is a layer, or an option."
                    )
            table[option.replace("-", "_")] = _value(text)
        elif rest:
            raise RecipeError(
                f"--set {item!r}: only method.options and task.options have keys below them. Write table.key=value."
            )
        else:
            found[key] = text if key in COLUMNS else _list(text) if key in LISTS else _value(text)
    return found


def merged(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Override values; tables are merged key by key."""
    found = dict(values)
    for key, value in overrides.items():
        before = found.get(key)
        found[key] = merged(before, value) if isinstance(before, dict) and isinstance(value, Mapping) else value
    return found


def _list(text: str) -> tuple[Any, ...]:
    return tuple(map(_value, text.split(",")))


def _value(text: str) -> Any:
    if text[:1] == "[" and text[-1:] == "]":
        return [_value(item.strip()) for item in text[1:-1].split(",") if item.strip()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text, text)
