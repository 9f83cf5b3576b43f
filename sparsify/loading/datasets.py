"""Samples from the user's own code: arrays, map-style torch Datasets, or DataLoaders."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from sparsify.errors import DataError
from sparsify.loading.arrays import checked_labels, samples_of_arrays
from sparsify.loading.factories import call_factory
from sparsify.parts.samples import Batch, Samples, as_inputs
from sparsify.user_code import told

NAMES = {2: ("train", "test"), 3: ("train", "validation", "test")}


def samples_of_factory(text: str) -> dict[str, Samples]:
    """What ``file.py:factory`` returns, as samples; inputs are taken as they are, bytes as images in [0, 1].

    Raises:
        LoadError: If the factory is missing or fails.
        DataError: If it returns something else than the parts of a data set.
    """
    given = call_factory(text, gives="data")
    if isinstance(given, Mapping):
        parts: dict[str, Any] = {{"val": "validation"}.get(str(k), str(k)): v for k, v in given.items()}
    elif isinstance(given, Sequence) and len(given) in NAMES:
        parts = dict(zip(NAMES[len(given)], given, strict=True))
    else:
        parts = {}
    if not {"train"} <= parts.keys() <= {"train", "validation", "test"}:
        raise DataError(
            f"the factory {text!r} should return (train, test), (train, validation, test) or a mapping with these keys, found "
            f"{_described(given)}."
        )
    return {name: samples_of_part(part, f"{text}, {name}") for name, part in parts.items()}


def samples_of_part(part: Any, where: str) -> Samples:
    """A pair of arrays (x, y), a Dataset or a DataLoader as samples.

    Raises:
        DataError: If it is something else, or not usable; ``where`` begins the message.
    """
    if isinstance(part, DataLoader):
        return DatasetSamples(part.dataset, where, collate=part.collate_fn)
    if isinstance(part, Dataset):
        return DatasetSamples(part, where)
    if isinstance(part, Sequence) and len(part) == 2 and all(hasattr(value, "__array__") for value in part):
        x, y = (np.asarray(value) for value in part)
        both = samples_of_arrays(where, {"x_train": x, "y_train": y}, normalise=False, as_images=False)
        return both["train"]
    raise DataError(f"{where} should be a pair of arrays (x, y), a Dataset or a DataLoader, found {_described(part)}.")


class DatasetSamples:
    """A map-style Dataset of (input, label). What is random in it is seeded by the batch, so a resumed run draws the same.

    Args:
        dataset: with a length; item i is (input, label).
        where: for messages.
        collate: joins items; torch's default.
    """

    def __init__(self, dataset: Any, where: str, *, collate: Callable[[list[Any]], Any] | None = None) -> None:
        if (
            isinstance(dataset, IterableDataset)
            or not hasattr(dataset, "__len__")
            or not hasattr(dataset, "__getitem__")
        ):
            raise DataError(
                f"{where}: {type(dataset).__name__} cannot be read by index, which a run that resumes needs. Give a map-style Dataset."
            )
        if len(dataset) == 0:
            raise DataError(f"{where} is empty.")
        self._dataset, self._where, self._collate = dataset, where, collate or default_collate
        self.targets = self._read_labels()

    def __len__(self) -> int:
        return len(self._dataset)

    def batch(self, rows: Tensor, *, seed: int = 0) -> Batch:
        with _seeded(seed):
            items = [self._item(row) for row in rows.tolist()]
            try:
                joined = self._collate(items)
            except Exception as error:
                raise DataError(f"{self._where}: {_unlike(items, rows.tolist()) or error}") from error
        if (
            not isinstance(joined, Sequence)
            or len(joined) != 2
            or not all(isinstance(value, Tensor) for value in joined)
        ):
            raise DataError(
                f"{self._where}: a batch should be a tensor of inputs and one of labels, found {_described(joined)}."
            )
        inputs, labels = joined
        if len(inputs) != len(rows) or labels.shape != rows.shape:
            raise DataError(
                f"{self._where}: a batch of {len(rows)} should be inputs [{len(rows)}, ...] and labels [{len(rows)}], found "
                f"{list(inputs.shape)} and {list(labels.shape)}. collate_fn may only join samples."
            )
        if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
            first = int((~torch.isfinite(inputs).flatten(1).all(1)).int().argmax())
            raise DataError(f"{self._where}: sample {int(rows[first])} holds NaN or infinity. Clean the data.")
        if not torch.equal(labels.long(), self.targets[rows]):
            first = int((labels.long() != self.targets[rows]).int().argmax())
            raise DataError(
                f"{self._where}: sample {int(rows[first])} has label {labels[first]}, not {self.targets[rows][first]} as first read. "
                f"Labels may not change from one reading to the next."
            )
        return Batch(as_inputs(inputs), labels.long())

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.targets.numpy().tobytes())
        digest.update(self.batch(torch.linspace(0, len(self) - 1, min(16, len(self))).long())[0].numpy().tobytes())
        return digest.hexdigest()

    def _read_labels(self) -> Tensor:
        known = _known_labels(self._dataset)
        if known is not None and len(known) == len(self):
            return self._checked(known)
        with _seeded(0):
            return self._checked([self._item(index)[1] for index in range(len(self))])

    def _item(self, index: int) -> tuple[Any, Any]:
        try:
            item = self._dataset[index]
        except Exception as error:
            raise DataError(f"{self._where}: reading sample {index} failed: {told(error)}.") from error
        if not isinstance(item, Sequence) or len(item) != 2:
            raise DataError(f"{self._where}: sample {index} should be (input, label), found {_described(item)}.")
        return item[0], item[1]

    def _checked(self, labels: Any) -> Tensor:
        try:
            values = np.asarray(labels)
        except Exception as error:
            raise DataError(f"{self._where}: labels are no numbers: {error}.") from error
        return checked_labels(values, f"{self._where}: labels")


def _known_labels(dataset: Any) -> Any:
    """The labels a data set keeps in ``targets`` or ``labels``, so that no input need be read for them; None where it does not."""
    if getattr(dataset, "target_transform", None) is not None:
        return None
    if isinstance(dataset, torch.utils.data.Subset):
        base = _known_labels(dataset.dataset)
        return None if base is None else [base[index] for index in dataset.indices]
    known = (getattr(dataset, name, None) for name in ("targets", "labels"))
    return next((values for values in known if hasattr(values, "__len__")), None)


def _unlike(items: Sequence[tuple[Any, Any]], rows: Sequence[int]) -> str:
    """Which sample's input is unlike the first one's, as a sentence; nothing where all are alike."""

    def kind(value: Any) -> str:
        return str(list(value.shape)) if hasattr(value, "shape") else type(value).__name__

    first = kind(items[0][0])
    for row, (value, _) in zip(rows, items, strict=True):
        if kind(value) != first:
            return (
                f"the input of sample {row} is {kind(value)}, that of sample {rows[0]} {first}; they should be alike."
            )
    return ""


@contextmanager
def _seeded(seed: int) -> Generator[None]:
    """Seed torch, numpy and random for a while, and put their states back."""
    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)


def _described(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(str, value))}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} of {', '.join(type(item).__name__ for item in value)}"
    return type(value).__name__
