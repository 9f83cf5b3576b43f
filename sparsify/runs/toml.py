"""Reads TOML from untrusted files, and writes it."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from sparsify.errors import RecipeError
from sparsify.ir.foreign import LONGEST_TEXT
from sparsify.untrusted import INTEGERS, read_text

LARGEST_RECIPE = 1 << 20  # bytes


def read_toml(path: Path) -> dict[str, Any]:
    """Read the tables of a TOML file.

    Raises:
        RecipeError: If the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(read_text(path, largest=LARGEST_RECIPE))
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}.") from error
    except RecursionError as error:
        raise RecipeError(f"{path} is not the TOML of a recipe: it is nested too deeply.") from error
    except ValueError as error:  # not TOML, not UTF-8, too large, or a number of thousands of digits
        raise RecipeError(f"{path} is not TOML: {error}.") from error


def check_values(value: Any, where: str = "the recipe") -> None:
    """Refuse values that no key allows: numbers that are not finite or have more than 64 bits, and strings with control characters.

    Raises:
        RecipeError: If there is such a value; the message names its key.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            check_values(inner, str(key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            check_values(inner, where)
    elif isinstance(value, int) and value not in INTEGERS:
        raise RecipeError(f"{where} is a number of more than 64 bits. Give one that fits.")
    elif isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{where} is {value}; it should be finite.")
    elif isinstance(value, str) and not _is_text(value):
        raise RecipeError(
            f"{where} is {shown(value)}, which is longer than {LONGEST_TEXT} characters, or holds control characters or bytes that are "
            f"not UTF-8. A recipe is a text file: rename what it names."
        )


def _is_text(value: str) -> bool:
    try:
        return (
            len(value.encode()) <= 4 * LONGEST_TEXT
            and len(value) <= LONGEST_TEXT
            and not re.search(r"[\x00-\x1f\x7f]", value)
        )
    except UnicodeEncodeError:
        return False


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def to_toml(values: Mapping[str, Any]) -> str:
    """Write TOML: scalars and lists first, then tables. None and empty tables are left out. `read_toml` reads it back."""
    return tomli_w.dumps(_written(values))


def _written(values: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: _written(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    return {key: value for key, value in found.items() if value is not None and value != {}}
