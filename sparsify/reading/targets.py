"""Checks targets: class numbers, or other numbers and truth values."""

from __future__ import annotations

import numpy as np

from sparsify.errors import DataError

HIGHEST_CLASS = 2**20
NUMBERED = "Number the classes from 0: numpy.unique(y, return_inverse=True)[1]."


def class_numbers(values: np.ndarray, where: str) -> np.ndarray:
    """Convert class numbers to int64 [N].

    Raises:
        DataError: If they are not whole numbers from 0 in one dimension.
    """
    if values.ndim != 1:
        raise DataError(
            f"{where} should hold one class per sample, [N], found shape {list(values.shape)}. {_advice(values)}"
        )
    if not np.issubdtype(values.dtype, np.integer):
        raise DataError(f"{where} should hold classes, whole numbers from 0, found {values.dtype}. {_advice(values)}")
    wrong = (values < 0) | (values > HIGHEST_CLASS)
    if wrong.any():
        index = int(wrong.argmax())
        raise DataError(
            f"{where} should hold whole numbers from 0 to {HIGHEST_CLASS}, found {values[index]} at sample {index}."
        )
    return values.astype(np.int64)


def numbers(values: np.ndarray, where: str) -> np.ndarray:
    """Convert targets [N, ...]: whole numbers to int64, other numbers to float32, truth values to bool.

    Raises:
        DataError: If they are not numbers, or contain NaN, infinity, or a number beyond the type.
    """
    if values.ndim == 0:
        raise DataError(f"{where} should hold one target per sample, [N, ...], found a single value.")
    if values.dtype == np.bool_:
        return values.copy()
    if np.issubdtype(values.dtype, np.integer):
        if values.dtype == np.uint64 and (wrong := values > np.iinfo(np.int64).max).any():
            raise DataError(
                f"{where} holds whole numbers beyond int64, first {_place(wrong)}. Scale them, or give floats."
            )
        return values.astype(np.int64)
    if not np.issubdtype(values.dtype, np.floating):
        advice = NUMBERED if values.dtype.kind in "USO" else "Convert them to numbers."
        raise DataError(f"{where} holds {values.dtype}; targets are numbers. {advice}")
    if (wrong := ~np.isfinite(values)).any():
        raise DataError(f"{where} holds NaN or infinity, first {_place(wrong)}. Leave these samples out.")
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    if (wrong := ~np.isfinite(found)).any():
        raise DataError(f"{where} holds numbers beyond float32 (3.4e38), first {_place(wrong)}. Scale the targets.")
    return found


def _place(wrong: np.ndarray) -> str:
    at = [int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape)]
    return f"at sample {at[0]}" + (f", position {at[1:]}" if len(at) > 1 else "")


def _advice(values: np.ndarray) -> str:
    """Return advice for targets that are not class numbers, depending on what they appear to be."""
    if not (np.issubdtype(values.dtype, np.number) or values.dtype == np.bool_):
        return NUMBERED
    whole = bool(np.isfinite(values).all() and (values == np.round(values)).all())
    if not whole:
        return "These look like the targets of a regression: set the task to 'regression'."
    if values.ndim == 1:
        return "All are whole, so y.astype('int64') keeps them as they are."
    if values.ndim == 2 and values.shape[1] == 1:
        return "Use y.ravel()."
    if values.ndim == 2 and bool(np.isin(values, (0, 1)).all()):
        if (values.sum(1) == 1).all():
            return "These are one-hot: use y.argmax(1)."
        return "These look like several labels per sample: set the task to 'multilabel'."
    return "These look like classes of positions: set the task to 'dense' (logits [N, K, ...]) or 'sequence' (logits [N, T, K])."
