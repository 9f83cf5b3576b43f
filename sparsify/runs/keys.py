"""The keys of a recipe as its file writes them, in tables, and the fields of `Recipe` that they set.

``[train] lr`` is the field ``lr``, and ``--set train.lr=0.1`` for the command.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from sparsify.errors import RecipeError

OPTIONS = ("method_options", "task_options")
"""Keys that are tables of further keys."""
LISTS = ("keep_dense", "ood", "ood_validation", "heads", "mean", "std")
"""Keys whose values are lists, written with commas in ``key=value``."""
COLUMNS = ("target", "category_columns", "ignore_columns", "dynamic")
"""Keys whose values are lists of names, or one text of names with commas."""
TABLES: Mapping[str, Mapping[str, str]] = {
    "model": {
        "source": "model",
        "weights": "weights",
        "logits": "logits",
        "dynamic": "dynamic",
        "trust_pickle": "trust_pickle",
        "passes": "passes",
    },
    "data": {
        "source": "data",
        "target": "target",
        "category_columns": "category_columns",
        "ignore_columns": "ignore_columns",
        "holdout": "holdout",
        "test_holdout": "test_holdout",
        "train_samples": "train_samples",
        "image_size": "image_size",
        "channels": "channels",
        "normalise": "normalise",
        "mean": "mean",
        "std": "std",
        "ood": "ood",
        "ood_validation": "ood_validation",
        "shift": "shift",
    },
    "task": {
        "kind": "task",
        "loss": "loss",
        "figures": "figures",
        "options": "task_options",
    },
    "method": {
        "name": "method",
        "sparsity": "sparsity",
        "pattern": "pattern",
        "keep_dense": "keep_dense",
        "baseline": "baseline",
        "teacher": "teacher",
        "options": "method_options",
    },
    "train": {
        "epochs": "epochs",
        "batch_size": "batch_size",
        "optimizer": "optimizer",
        "lr": "lr",
        "momentum": "momentum",
        "weight_decay": "weight_decay",
        "schedule": "schedule",
        "warmup": "warmup",
        "label_smoothing": "label_smoothing",
        "clip_gradient_norm": "clip_gradient_norm",
        "augment": "augment",
        "device": "device",
        "precision": "precision",
        "early_stop": "early_stop",
        "seed": "seed",
        "threads": "threads",
        "compact": "compact",
        "checkpoint_every": "checkpoint_every",
        "workers": "workers",
    },
    "export": {
        "calibrator": "calibrator",
        "heads": "heads",
        "opset": "opset",
        "storage": "storage",
        "form": "form",
        "selection": "selection",
        "precision": "export_precision",
        "input": "export_input",
        "batch": "export_batch",
    },
}
"""By table, the field of each key."""
_SPELT = {field: f"{table}.{key}" for table, keys in TABLES.items() for key, field in keys.items()}


def spelt(field: str) -> str:
    """Return how a file writes a field of `Recipe`: ``train.lr``."""
    return _SPELT.get(field, field)


def field_of(words: str) -> str:
    """Return the field that ``train.lr`` sets; hyphens stand for underscores.

    Raises:
        RecipeError: If there is no such key (the message names the nearest), or its table is missing (the message names the table).
    """
    words = words.replace("-", "_")
    table, dot, key = words.partition(".")
    if dot and key in TABLES.get(table, {}):
        return TABLES[table][key]
    raise RecipeError(_unknown(words))


def from_tables(values: Mapping[str, Any], owner: str = "a recipe") -> dict[str, Any]:
    """Convert the tables of a file to fields.

    Args:
        values: tables by name.
        owner: what the tables belong to, for messages.

    Raises:
        RecipeError: If a key is unknown (the message names the nearest), or outside its table (the message shows how to write it).
    """
    if outside := [key for key in values if not (key in TABLES and isinstance(values[key], Mapping))]:
        raise RecipeError(_no_table(outside[0], values[outside[0]], owner) or _outside(outside, owner))
    found: dict[str, Any] = {}
    for table, keys in values.items():
        for key, value in keys.items():
            if key not in TABLES[table]:
                raise RecipeError(f"{owner}: {_unknown(f'{table}.{key}')}")
            found[TABLES[table][key]] = value
    return found


def to_tables(fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Convert fields to tables, with tables and keys in their order; the inverse of `from_tables`."""
    found = {
        table: {key: fields[field] for key, field in keys.items() if field in fields} for table, keys in TABLES.items()
    }
    return {table: keys for table, keys in found.items() if keys}


def _no_table(key: str, value: Any, owner: str) -> str:
    """Return the message for a key that is the name of a table but is not a table; empty for other keys."""
    listed = isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)
    if key not in TABLES or (key in _SPELT and not listed):
        return ""
    found = f"[[{key}]], which begins a list of tables" if listed else f"{key} = {str(value)[:80]}"
    return f"{owner} has one table [{key}], found {found}. Write [{key}] once and, below it, its keys: {', '.join(TABLES[key])}."


def _outside(keys: Sequence[str], owner: str) -> str:
    known = [f"{key} is {spelt(key)}" for key in keys if key in _SPELT]
    others = [key for key in keys if key not in _SPELT]
    if not known:
        return f"{owner} has no table {others[0]!r}. Its tables are {', '.join(f'[{table}]' for table in TABLES)}."
    more = f" There is no key {', '.join(map(repr, others))}." if others else ""
    table, _, key = spelt(next(key for key in keys if key in _SPELT)).partition(".")
    return f"{owner} has its keys in tables: {', '.join(known)}. Write [{table}] and, below it, {key}.{more}"


def _unknown(words: str) -> str:
    field = words.rpartition(".")[2]
    if field in _SPELT and "." not in words:
        return f"the key {words!r} belongs to a table: write {spelt(field)}."
    names = list(_SPELT.values())
    near = [spelt(field)] if field in _SPELT else []
    near += [name for name in difflib.get_close_matches(words, names, n=3) if name not in near]
    near += [n for n in names if difflib.get_close_matches(field, [n.partition(".")[2]], cutoff=0.75) and n not in near]
    table = words.partition(".")[0]
    listed = ", ".join(TABLES[table]) if table in TABLES else ", ".join(f"[{name}]" for name in TABLES)
    where = table if table in TABLES else "the tables"
    return f"there is no key {words!r}. Nearest: {', '.join(near[:4]) or 'none'}. All of {where}: {listed}."
