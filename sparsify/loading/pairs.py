"""Finds inputs and target in a sample, a batch or a whole part, which is a pair, or a mapping with the target under a known key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsify.errors import DataError

TARGET_KEYS = ("labels", "label", "target", "targets", "y")
ONLY = ("x", "inputs", "input")
"""Keys of a single input that is passed by position, whatever the name of the argument of ``forward``."""
IGNORED = -100
"""Target of positions that are padding; torch's cross-entropy ignores it."""


def pair_of(value: Any, where: str) -> tuple[Any, Any]:
    """Return inputs and target of a pair (input, target), or of a mapping with one of `TARGET_KEYS`.

    Raises:
        DataError: If the value is neither; the message begins with ``where``.
    """
    if isinstance(value, Mapping):
        keys = [key for key in TARGET_KEYS if key in value]
        inputs = {str(key): item for key, item in value.items() if key not in keys[:1]}
        if len(keys) != 1 or not inputs:
            raise DataError(
                f"{where} should hold inputs by the names of forward and one target, under {', '.join(TARGET_KEYS[:-1])} or "
                f"{TARGET_KEYS[-1]}, found {described(value)}."
            )
        return inputs[next(iter(inputs))] if len(inputs) == 1 and next(iter(inputs)) in ONLY else inputs, value[keys[0]]
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise DataError(f"{where} should be (input, label), found {described(value)}.")
    return value[0], value[1]


def tree_of(value: Any, where: str) -> Any:
    """Convert inputs to tensors: mappings become dictionaries, sequences become tuples, arrays become tensors.

    Raises:
        DataError: If a leaf is neither an array nor a tensor; the message begins with ``where``.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, Mapping) and value:
        return {str(key): tree_of(item, f"{where}, {key!r}") for key, item in value.items()}
    if isinstance(value, (tuple, list)) and value:
        return tuple(tree_of(item, f"{where}, position {place}") for place, item in enumerate(value))
    raise DataError(f"{where} should be a tensor, found {described(value)}. Leave it out, or make it one.")


def check_bytes(inputs: Any, where: str) -> None:
    """Check that bytes are images if there are several inputs or named ones; tokens and masks would become numbers in [0, 1].

    Args:
        inputs: a mapping or tuple of arrays or tensors [N, ...]. A single input without a name is not checked: it holds pixels.
        where: beginning of the message.

    Raises:
        DataError: If a sample of an input is a byte or a row of bytes.
    """
    if not isinstance(inputs, (Mapping, tuple)):
        return
    for name, value in inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs):
        if isinstance(value, (Mapping, tuple)):
            check_bytes(value, where)
        elif str(value.dtype).removeprefix("torch.") == "uint8" and value.ndim < 3:
            shape = ", ".join(["N", *map(str, value.shape[1:])])
            raise DataError(
                f"{where}: input {name!r} holds bytes (uint8) [{shape}], and bytes are read as pixels in [0, 1]. Give tokens and other "
                f"whole numbers as int64, a mask as bool, and pixels that are not an image as float32."
            )


def rows_as_tensors(item: Any) -> Any:
    """Convert lists of numbers in a sample to tensors, so that torch's collate function stacks them."""
    if isinstance(item, Mapping):
        return {key: rows_as_tensors(value) for key, value in item.items()}
    if isinstance(item, tuple):
        return tuple(map(rows_as_tensors, item))
    if isinstance(item, list):
        try:
            return torch.as_tensor(item)
        except (TypeError, ValueError, RuntimeError):
            return item
    return item


def holds_arrays(value: Any) -> bool:
    """Return whether a value is an array, or a tuple or mapping of arrays."""
    if isinstance(value, Mapping):
        return bool(value) and all(map(holds_arrays, value.values()))
    if isinstance(value, tuple):
        return bool(value) and all(map(holds_arrays, value))
    return hasattr(value, "__array__")


def unlike(inputs: Sequence[Any], rows: Sequence[int]) -> str:
    """Return a sentence that names the first sample whose inputs differ in kind from those of the first; empty if none does."""
    first = _kind(inputs[0])
    for row, value in zip(rows, inputs, strict=True):
        if (kind := _kind(value)) != first:
            return (
                f"the input of sample {row} is {kind}, but that of sample {rows[0]} is {first}. If only their lengths differ, "
                f"give a DataLoader whose collate_fn pads them."
            )
    return ""


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_kind(item)}" for key, item in value.items())
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return str(list(value.shape)) if hasattr(value, "shape") else type(value).__name__


def stacked(targets: Sequence[Any]) -> Any:
    """Stack targets of all samples into an array or a mapping of arrays; whole numbers of different lengths are padded with `IGNORED`."""
    if targets and isinstance(targets[0], Mapping):
        return {key: stacked([target[key] for target in targets]) for key in targets[0]}
    arrays = [np.asarray(target) for target in targets]
    ragged = len({array.shape for array in arrays}) > 1 and all(array.ndim == 1 for array in arrays)
    if not ragged or not all(np.issubdtype(array.dtype, np.integer) for array in arrays):
        return np.asarray(targets if not any(isinstance(t, Tensor) for t in targets) else arrays)
    table = np.full((len(arrays), max(map(len, arrays))), IGNORED, dtype=np.int64)
    for row, array in zip(table, arrays, strict=True):
        row[: len(array)] = array
    return table


def lengths_of(targets: Sequence[Any]) -> Any:
    """Return the lengths of targets that `stacked` pads, int64 [N], or by key for mappings; None if nothing is padded."""
    if len(targets) and isinstance(targets[0], Mapping):
        return {key: lengths_of([target[key] for target in targets]) for key in targets[0]}
    shapes = [np.shape(target) for target in targets]
    if len(set(shapes)) < 2 or not all(len(shape) == 1 for shape in shapes):
        return None
    return torch.tensor([shape[0] for shape in shapes])


def described(value: Any) -> str:
    """Describe a value, for a message."""
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(str, value)) or 'nothing'}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} of {', '.join(type(item).__name__ for item in value[:6])}"
    return type(value).__name__
