"""Targets of any task. Loading checks that they are numbers; the task checks whether they fit the outputs of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsify.errors import DataError
from sparsify.parts.trees import Tree

HIGHEST_CLASS = 2**20
ONE_CLASS = ("classification", "binary")
"""Tasks with one class per sample."""
NUMBERED = "Number the classes from 0: numpy.unique(y, return_inverse=True)[1]."


def checked_targets(values: Any, where: str, *, task: str | None = None) -> Tree:
    """Convert targets to tensors [N, ...]: whole numbers to int64, other numbers to float32, truth values to bool.

    Args:
        values: an array, or a tuple or mapping of arrays.
        where: name of the targets, for messages.
        task: name of the task. ``classification`` accepts only class numbers; None: unknown.

    Raises:
        DataError: If they are not numbers, contain NaN or infinity, or are not class numbers although the task needs them.
    """
    if isinstance(values, Mapping):
        return {str(name): checked_targets(value, f"{where}.{name}", task=task) for name, value in values.items()}
    if isinstance(values, tuple):
        return tuple(checked_targets(value, f"{where}.{place}", task=task) for place, value in enumerate(values))
    try:
        array = np.asarray(values)
    except Exception as error:
        raise DataError(f"{where} are not numbers: {error}.") from error
    return class_numbers(array, where) if task == "classification" else _numbers(array, where)


def as_target(values: Tensor) -> Tensor:
    """Convert values to the dtypes of `checked_targets`: float32, int64 or bool."""
    if values.is_floating_point():
        return values.float()
    return values if values.dtype is torch.bool else values.long()


def class_numbers(values: np.ndarray, where: str) -> Tensor:
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
    return torch.from_numpy(values.astype(np.int64))


def _numbers(values: np.ndarray, where: str) -> Tensor:
    if values.ndim == 0:
        raise DataError(f"{where} should hold one target per sample, [N, ...], found a single value.")
    if values.dtype == np.bool_:
        return torch.from_numpy(values.copy())
    if np.issubdtype(values.dtype, np.integer):
        if values.dtype == np.uint64 and (wrong := values > np.iinfo(np.int64).max).any():
            raise DataError(
                f"{where} holds whole numbers beyond int64, first {_place(wrong)}. Scale them, or give floats."
            )
        return torch.from_numpy(values.astype(np.int64))
    if not np.issubdtype(values.dtype, np.floating):
        advice = NUMBERED if values.dtype.kind in "USO" else "Convert them to numbers."
        raise DataError(f"{where} holds {values.dtype}; targets are numbers. {advice}")
    if (wrong := ~np.isfinite(values)).any():
        raise DataError(f"{where} holds NaN or infinity, first {_place(wrong)}. Leave these samples out.")
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    if (wrong := ~np.isfinite(found)).any():
        raise DataError(f"{where} holds numbers beyond float32 (3.4e38), first {_place(wrong)}. Scale the targets.")
    return torch.from_numpy(found)


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


def sample_classes(targets: Tree, task: str | None = None) -> Tensor | None:
    """Return the class of each sample, int64 [N]; None if the targets are not one class per sample.

    Args:
        targets: targets of a data set.
        task: name of the task. None: unknown; whole numbers [N] from 0, or only 0 and 1, are taken for classes.
    """
    if not isinstance(targets, Tensor) or task not in (None, *ONE_CLASS):
        return None
    flat = targets.squeeze(1) if task == "binary" and targets.ndim == 2 and targets.shape[1] == 1 else targets
    if flat.ndim != 1 or not len(flat):
        return None
    if flat.is_floating_point() and not bool(((flat == 0) | (flat == 1)).all()):
        return None
    found = flat.long()
    return found if int(found.min()) >= 0 and int(found.max()) <= HIGHEST_CLASS else None


def count_classes(targets: Tree, task: str | None = None) -> int:
    """Return the number of classes, which is the highest training target plus 1; 0 if the targets are not class numbers."""
    if task in ("dense", "sequence") and isinstance(targets, Tensor) and not targets.is_floating_point():
        return max(int(targets.max()) + 1, 0)
    classes = sample_classes(targets, task)
    return 0 if classes is None else int(classes.max()) + 1
