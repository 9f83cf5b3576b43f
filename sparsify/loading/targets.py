"""Targets of any task. Loading checks that they are numbers; the task checks whether they fit the outputs of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsify.errors import DataError
from sparsify.parts.trees import Tree
from sparsify.reading.targets import HIGHEST_CLASS, class_numbers, numbers

ONE_CLASS = ("classification", "binary")
"""Tasks with one class per sample."""


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
    return torch.from_numpy(class_numbers(array, where) if task == "classification" else numbers(array, where))


def as_target(values: Tensor) -> Tensor:
    """Convert values to the dtypes of `checked_targets`: float32, int64 or bool."""
    if values.is_floating_point():
        return values.float()
    return values if values.dtype is torch.bool else values.long()


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
