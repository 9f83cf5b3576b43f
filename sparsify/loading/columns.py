"""Turns columns of a table into inputs and targets: standardises numbers, and makes one input per category."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsify.errors import DataError, LoadWarning
from sparsify.loading.holdout import held_rows
from sparsify.loading.tables import DECIMAL_COMMA, DELIMITERS, Table, number
from sparsify.loading.targets import ONE_CLASS
from sparsify.parts.samples import Samples, TensorSamples
from sparsify.reading.arrays import free_memory

MOST_CATEGORIES = 1000
"""Largest number of different categories in one column."""
MISSING = frozenset({"na", "n/a", "#n/a", "null", "none", "nil", "?", "-", "."})
"""Common markers of missing values, in lower case; only columns that are declared as categories may contain them."""
LARGEST_WHOLE = 2**53
"""Largest number up to which all whole numbers are exact in float64."""
WHOLE = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class TableSamples:
    """The samples of a table.

    Attributes:
        parts: ``train``, and ``test`` if rows are held out.
        class_names: names of the classes if the target is a column of classes; names of the columns if there are several targets.
        preparation: how rows become inputs, as JSON-compatible data for users of an exported file.
    """

    parts: dict[str, Samples]
    class_names: tuple[str, ...] | None
    preparation: dict[str, Any]


def samples_of_table(
    table: Table,
    *,
    target: Sequence[str],
    categories: Sequence[str] = (),
    ignored: Sequence[str] = (),
    test_holdout: float | None = None,
    normalise: bool = True,
    task: str | None = None,
) -> TableSamples:
    """Return the samples of a table: inputs float32 [N, F], and the target columns.

    Args:
        table: the text of the table.
        target: columns to predict. A single column of text holds classes, numbered in sorted order; whole numbers become int64, other
            numbers float32.
        categories: columns to read as categories in any case; other columns are categories if none of their fields is a number.
        ignored: columns that are neither inputs nor targets.
        test_holdout: share of the rows kept for testing, always the same rows; None: none.
        normalise: scale columns of numbers to mean 0 and deviation 1 over the rows that are not kept for testing.
        task: name of the task. If its samples have one class each, whole numbers are renumbered from 0. None: they stay unchanged.

    Raises:
        DataError: If a column is missing, or contains values that are not allowed; the message names the line.
    """
    _check_names(table, target=target, categories=categories, ignored=ignored)
    targets, names = _targets(table, target, task)
    total = len(table.lines)
    kept, held = np.arange(total), np.arange(0)
    if test_holdout is not None:
        kept, held = (
            np.sort(rows)
            for rows in held_rows(str(table.path), targets, total, seed=0, fraction=test_holdout, task=task)
        )
    features: list[dict[str, Any]] = []
    columns: list[np.ndarray] = []
    room, width, constant = free_memory(), 0, list[str]()
    for name, values in table.columns.items():
        if name in target or name in ignored:
            continue
        read = None if name in categories else _numbers(table, name, values)
        feature = (
            _categories(table, name, values, kept, held) if read is None else _standard(name, read, kept, normalise)
        )
        features.append(feature)
        width += len(feature.get("categories", [0]))
        if width * total * 8 > room:
            raise DataError(
                f"{table.path}: {width:,} inputs for each of {total:,} rows take {width * total * 8:,} bytes, but only {room:,} are free. "
                f"Leave out columns with many categories with ignore_columns."
            )
        columns += _encoded(feature, values if read is None else read)
        if feature.get("constant"):
            constant.append(name)
    if not features:
        raise DataError(f"{table.path} has no column left for inputs. Remove columns from ignore_columns.")
    if constant:
        _note(f"{table.path}: columns with a single value in the training part are read as 0: {_listed(constant)}.")
    if table.delimiter != ",":
        _note(f"{table.path}: columns are separated by {DELIMITERS[table.delimiter]}.")
    inputs = torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))
    parts: dict[str, Samples] = {"train": _part(inputs, targets, kept)}
    if len(held):
        parts["test"] = _part(inputs, targets, held)
    prepared = {"kind": "table", "delimiter": table.delimiter, "target": list(target), "ignored": list(ignored)}
    prepared |= {"features": features}
    return TableSamples(parts, names, prepared | ({"classes": list(names)} if names and len(target) == 1 else {}))


def encode(preparation: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """Turn new rows into inputs, float32 [N, F], in the same way as the rows that a model was trained on.

    Args:
        preparation: the preparation stored in ``metrics.json`` and in the metadata of a file.
        rows: for each row, the value of each column by name; other columns are not read.

    Raises:
        DataError: If a row lacks a column, or has text in a column of numbers.
    """
    found: list[list[float]] = []
    for place, row in enumerate(rows):
        values: list[float] = []
        for feature in preparation["features"]:
            name = feature["column"]
            if name not in row:
                raise DataError(
                    f"row {place} lacks the column {name!r}. Give all columns on which the model was trained."
                )
            if "categories" in feature:
                text = None if feature.get("constant") else str(row[name]).strip()
                values += [float(text == category) for category in feature["categories"]]
                continue
            value = number(str(row[name]))
            if value is None or not math.isfinite(value):
                raise DataError(f"row {place}, column {name!r} should hold a number, found {row[name]!r}.")
            values.append(0.0 if feature.get("constant") else (value - feature["mean"]) / feature["std"])
        found.append(values)
    return np.asarray(found, dtype=np.float64).astype(np.float32)


# --- names


def _check_names(table: Table, **named: Sequence[str]) -> None:
    keys = {"target": "target", "categories": "category_columns", "ignored": "ignore_columns"}
    if not named["target"]:
        raise DataError(
            f"no column of {table.path} is chosen as the target. Set target under [data] in a recipe, or --target for the command, to one "
            f"of its columns: {_listed(list(table.columns))}."
        )
    for key, names in named.items():
        for place, name in enumerate(names):
            if name not in table.columns:
                raise DataError(
                    f"{table.path} has no column {name!r}, which {keys[key]} names. It has {_listed(list(table.columns))}."
                )
            others = [other for other in keys if other != key and name in named[other]]
            if others or name in names[:place]:
                second = keys[others[0]] if others else keys[key]
                raise DataError(f"{keys[key]} and {second} both name column {name!r}. Name it in one of them.")


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


# --- reading


def _numbers(table: Table, name: str, values: Sequence[str]) -> np.ndarray | None:
    """Return the numbers of a column, float64; None if none of its fields is a number.

    Raises:
        DataError: If a field is missing, or only some fields are numbers.
    """
    read = [number(value) for value in values]
    _check_present(table, name, values, read)
    if all(value is None for value in read):
        if (row := next((i for i, text in enumerate(values) if DECIMAL_COMMA.fullmatch(text)), None)) is not None:
            raise DataError(
                f"{table.where(row, name)}: {values[row]!r} has a decimal comma. Write numbers with a point."
            )
        if (row := next((i for i, text in enumerate(values) if text.lower() in MISSING), None)) is not None:
            raise DataError(
                f"{table.where(row, name)}: {values[row]!r} usually stands for a missing value. Fill it in or leave the row out, or name "
                f"the column in category_columns if it is a category like others."
            )
        return None
    for row, value in enumerate(read):
        if value is None:
            raise DataError(
                f"{table.where(row, name)}: {values[row]!r} is not a number, but other fields of the column are. Fill it in or leave the "
                f"row out if it stands for a missing value; name the column in category_columns if it holds categories."
            )
    return np.asarray(read, dtype=np.float64)


def _check_present(table: Table, name: str, values: Sequence[str], read: Sequence[float | None] = ()) -> None:
    for row, text in enumerate(values):
        value = read[row] if read else None
        if not text or (value is not None and not math.isfinite(value)):
            what = "the field is empty" if not text else f"{text!r} is not a finite number"
            raise DataError(
                f"{table.where(row, name)}: {what}. Fill in missing values, leave the row out, or leave the column out with "
                f"ignore_columns."
            )


def _standard(name: str, values: np.ndarray, kept: np.ndarray, normalise: bool) -> dict[str, Any]:
    """Compute mean and deviation of a column of numbers over the training rows."""
    mean, std = float(values[kept].mean()), float(values[kept].std())
    constant = bool((values[kept] == values[kept][0]).all())
    if not normalise:
        return {"column": name, "mean": 0.0, "std": 1.0}
    if constant:
        return {"column": name, "mean": float(values[kept][0]), "std": 1.0, "constant": True}
    return {"column": name, "mean": mean, "std": std}


def _categories(table: Table, name: str, values: Sequence[str], kept: np.ndarray, held: np.ndarray) -> dict[str, Any]:
    """Return the sorted categories of a column in the training rows; warns of test rows with other categories."""
    _check_present(table, name, values)
    found = sorted({values[int(row)] for row in kept})
    if len(found) > MOST_CATEGORIES or (len(found) == len(kept) > 20):
        raise DataError(
            f"{table.path}: column {name!r} holds {len(found):,} different texts in {len(kept):,} rows, too many for categories. Leave it "
            f"out with ignore_columns."
        )
    known = set(found)
    unknown = [int(row) for row in held if values[int(row)] not in known]
    if unknown:
        texts = sorted({values[row] for row in unknown})
        _note(
            f"{table.path}: {len(unknown)} of {len(held)} test rows have a category of {name!r} that no training row has "
            f"({_listed(texts, 5)}); the inputs of that column are all 0 in these rows."
        )
    return {"column": name, "categories": found, **({"constant": True} if len(found) == 1 else {})}


def _encoded(feature: Mapping[str, Any], values: Any) -> list[np.ndarray]:
    """Return the inputs that one column becomes."""
    if feature.get("constant"):
        return [np.zeros(len(values))]
    if "categories" not in feature:
        return [(values - feature["mean"]) / feature["std"]]
    texts = np.asarray(values)
    return [(texts == category).astype(np.float64) for category in feature["categories"]]


# --- targets


def _targets(table: Table, target: Sequence[str], task: str | None) -> tuple[Tensor, tuple[str, ...] | None]:
    """Return the targets, and the names of their classes or, for several target columns, of the columns.

    Raises:
        DataError: If a column cannot be a target of this task.
    """
    read: list[np.ndarray] = []
    for name in target:
        values = table.columns[name]
        numbers = _numbers(table, name, values)
        if numbers is None or (task in ONE_CLASS and len(target) == 1):
            if len(target) > 1 or task not in (None, *ONE_CLASS):
                told = f"the task {task!r} predicts numbers" if task else "several columns are predicted as numbers"
                raise DataError(
                    f"{table.path}: target column {name!r} holds text, and {told}. Number its values, or leave it out."
                )
            return _classes(table, name, numbers)
        read.append(numbers)
    whole = all(WHOLE.fullmatch(text) for name in target for text in table.columns[name])
    stacked = read[0] if len(target) == 1 else np.stack(read, axis=1)
    whole = whole and bool((np.abs(stacked) <= LARGEST_WHOLE).all())
    found = torch.from_numpy(stacked.astype(np.int64 if whole and task != "regression" else np.float32))
    if not bool(found.isfinite().all()):
        raise DataError(f"{table.path}: targets reach beyond float32 (3.4e38). Scale them.")
    return found, tuple(target) if len(target) > 1 else None


def _classes(table: Table, name: str, numbers: np.ndarray | None) -> tuple[Tensor, tuple[str, ...]]:
    """Number the values of a column in sorted order; returns the class numbers and the names of the classes."""
    values = table.columns[name]
    if numbers is not None:
        wrong = numbers != np.round(numbers)
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(
                f"{table.where(row, name)}: {values[row]!r} is not a class: classes are text or whole numbers. These look like the targets "
                f"of a regression: set the task to 'regression'."
            )
        distinct, found = np.unique(numbers.astype(np.int64), return_inverse=True)  # beyond 2**53 some would be one
        if (np.abs(numbers) > LARGEST_WHOLE).any():
            raise DataError(f"{table.path}: target column {name!r} holds numbers beyond 2**53. Write classes as text.")
    else:
        distinct, found = np.unique(np.asarray(values), return_inverse=True)
    return torch.from_numpy(found.astype(np.int64)), tuple(map(str, distinct.tolist()))


def _part(inputs: Tensor, targets: Tensor, rows: np.ndarray) -> TensorSamples:
    index = torch.from_numpy(rows)
    return TensorSamples(inputs[index], targets[index])


def _note(text: str) -> None:
    warnings.warn(text, LoadWarning, stacklevel=3)
