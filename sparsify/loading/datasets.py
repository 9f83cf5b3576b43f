"""Makes samples from the results of the user's own code: arrays, map-style torch Datasets, or DataLoaders."""

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
from sparsify.loading.arrays import samples_of_arrays
from sparsify.loading.factories import call_factory
from sparsify.loading.once import once
from sparsify.loading.pairs import (
    IGNORED,
    TARGET_KEYS,
    check_bytes,
    described,
    holds_arrays,
    lengths_of,
    pair_of,
    rows_as_tensors,
    stacked,
    tree_of,
    unlike,
)
from sparsify.loading.targets import as_target, checked_targets
from sparsify.parts.samples import Batch, Samples, batch_inputs
from sparsify.parts.trees import Tree, mapped, shapes, tensors
from sparsify.user_code import told

NAMES = {2: ("train", "test"), 3: ("train", "validation", "test")}


def samples_of_factory(text: str, *, task: str | None = None) -> dict[str, Samples]:
    """Call ``file.py:factory`` and return its parts as samples; inputs stay unchanged, except that bytes become images in [0, 1].

    Raises:
        LoadError: If the factory is missing or fails.
        DataError: If it does not return the parts of a data set.
    """
    given: Any = once(text, task, lambda: call_factory(text, gives="data"))
    if isinstance(given, Mapping):
        parts: dict[str, Any] = {{"val": "validation"}.get(str(k), str(k)): v for k, v in given.items()}
    elif isinstance(given, Sequence) and len(given) in NAMES:
        parts = dict(zip(NAMES[len(given)], given, strict=True))
    else:
        parts = {}
    if not {"train"} <= parts.keys() <= {"train", "validation", "test"}:
        raise DataError(
            f"the factory {text!r} should return (train, test), (train, validation, test) or a mapping with these keys, found "
            f"{described(given)}."
        )
    return {name: samples_of_part(part, f"{text}, {name}", task=task) for name, part in parts.items()}


def samples_of_part(part: Any, where: str, *, task: str | None = None) -> Samples:
    """Return one part of a data set as samples.

    Args:
        part: a pair (x, y), or a mapping with a target among its keys, where x and y are arrays, or tuples or mappings of arrays. Or a
            Dataset, a sequence of samples, or a DataLoader, whose samples or batches are such pairs or mappings.
        where: beginning of messages.
        task: name of the task; see `sparsify.loading.targets.checked_targets`.

    Raises:
        DataError: If the part is something else, or not usable.
    """
    if isinstance(part, DataLoader):
        return DatasetSamples(part.dataset, where, collate=part.collate_fn, task=task)
    if isinstance(part, Dataset):
        return DatasetSamples(part, where, task=task)
    pair = isinstance(part, Sequence) and len(part) == 2 and all(map(holds_arrays, part))
    if pair or (isinstance(part, Mapping) and holds_arrays({k: v for k, v in part.items() if v is not None})):
        x, y = pair_of(part, where)
        arrays = {"x_train": _arrays(x), "y_train": _arrays(y)}
        return samples_of_arrays(where, arrays, normalise=False, as_images=False, task=task)["train"]
    rows = not isinstance(part, (str, Mapping)) and hasattr(part, "__len__") and hasattr(part, "__getitem__")
    if rows and len(part) and isinstance(part[0], (Mapping, tuple)):
        return DatasetSamples(part, where, task=task)
    raise DataError(
        f"{where} should be a pair of arrays (x, y), a mapping of arrays with a target, a Dataset, a sequence of samples or a DataLoader, "
        f"found {described(part)}."
    )


def _arrays(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {str(name): _arrays(value) for name, value in tree.items()}
    return tuple(map(_arrays, tree)) if isinstance(tree, tuple) else np.asarray(tree)


class DatasetSamples:
    """The samples of a map-style Dataset. Random numbers are seeded per batch, so that a resumed run draws the same values.

    Args:
        dataset: dataset with a length, whose items are (input, target), or mappings with a target among their keys. With a collate
            function, only the result of that function needs this form.
        where: beginning of messages.
        collate: joins items into a batch; None: torch's default.
        task: name of the task; see `sparsify.loading.targets.checked_targets`.
    """

    def __init__(
        self,
        dataset: Any,
        where: str,
        *,
        collate: Callable[[list[Any]], Any] | None = None,
        task: str | None = None,
    ) -> None:
        if (
            isinstance(dataset, IterableDataset)
            or not hasattr(dataset, "__len__")
            or not hasattr(dataset, "__getitem__")
        ):
            raise DataError(
                f"{where}: {type(dataset).__name__} cannot be read by index, which is required to resume a run. Give a map-style Dataset."
            )
        if len(dataset) == 0:
            raise DataError(f"{where} is empty.")
        self._dataset, self._where, self._task = dataset, where, task
        self._collate = None if collate is default_collate else collate
        self._lengths: Any = None
        self.targets = self._read_targets()

    def __len__(self) -> int:
        return len(self._dataset)

    def batch(self, rows: Tensor, *, seed: int = 0) -> Batch:
        with _seeded(seed):
            joined = self._joined([self._item(row) for row in rows.tolist()], rows.tolist())
        where = f"{self._where}: a batch"
        found, target = pair_of(joined, where)
        inputs, labels = tree_of(found, f"{where}'s inputs"), tree_of(target, f"{where}'s targets")
        check_bytes(inputs, self._where)
        for tensor in tensors((inputs, labels)):
            if tensor.ndim == 0 or len(tensor) != len(rows):
                raise DataError(
                    f"{where} of {len(rows)} should have {len(rows)} inputs and labels, found {shapes(inputs)} and {shapes(labels)}. "
                    f"collate_fn must return each of its samples once."
                )
        for tensor in tensors(inputs):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                first = int((~torch.isfinite(tensor).flatten(1).all(1)).int().argmax())
                raise DataError(f"{self._where}: sample {int(rows[first])} holds NaN or infinity. Clean the data.")
        return Batch(batch_inputs(inputs), self._unchanged(labels, rows))

    def targets_of(self, rows: Tensor) -> Tree:
        """Return the targets of some samples; targets per step are padded only to the longest of these samples, like their outputs."""
        kept = mapped(lambda tensor: tensor[rows], self.targets)
        if isinstance(kept, Tensor):
            return _cut(kept, self._lengths, rows)
        if isinstance(kept, Mapping) and isinstance(self._lengths, Mapping):
            return {key: _cut(value, self._lengths[key], rows) for key, value in kept.items()}
        return kept

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for tensor in tensors(self.targets):
            digest.update(tensor.numpy().tobytes())
        inputs = self.batch(torch.linspace(0, len(self) - 1, min(16, len(self))).long()).inputs
        if not isinstance(inputs, Tensor):
            digest.update(shapes(inputs).encode())
        for tensor in tensors(inputs):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def _joined(self, items: list[Any], rows: Sequence[int]) -> Any:
        try:
            return default_collate(list(map(rows_as_tensors, items))) if self._collate is None else self._collate(items)
        except Exception as error:
            inputs = [pair_of(rows_as_tensors(item), "")[0] for item in items] if all(map(self._is_pair, items)) else []
            raise DataError(f"{self._where}: {(inputs and unlike(inputs, rows)) or told(error)}") from error

    def _unchanged(self, target: Tree, rows: Tensor) -> Tree:
        """Return the targets of a batch after comparing them with those first read; only the amount of padding may differ.

        Raises:
            DataError: If they differ.
        """
        kept = mapped(lambda tensor: tensor[rows], self.targets)
        found = [as_target(tensor) for tensor in tensors(target)]
        for have, want in zip(found, tensors(kept), strict=True):
            if have.ndim == want.ndim == 2 and have.shape != want.shape:
                length = min(have.shape[1], want.shape[1])
                rest = torch.cat([have[:, length:].flatten(), want[:, length:].flatten()])
                same = torch.equal(have[:, :length], want[:, :length]) and bool((rest == IGNORED).all())
                if not same:
                    raise DataError(
                        f"{self._where}: the targets of samples {rows.tolist()[:4]} ... differ from those first read. A data set must "
                        f"return the same targets each time; only padding with {IGNORED} may differ."
                    )
            elif not torch.equal(have, want):
                if have.shape != want.shape:
                    raise DataError(
                        f"{self._where}: targets have shape {list(have.shape)}, but had {list(want.shape)} when they were first read."
                    )
                first = int(
                    (have != want).flatten(1 if have.ndim > 1 else 0).reshape(len(rows), -1).any(1).int().argmax()
                )
                raise DataError(
                    f"{self._where}: sample {int(rows[first])} has label {have[first].tolist()}, but had {want[first].tolist()} when it "
                    f"was first read. A data set must return the same labels each time."
                )
        return mapped(as_target, target)

    def _read_targets(self) -> Tree:
        where = f"{self._where}: labels"
        known = _known_targets(self._dataset)
        if known is not None and len(known) == len(self):
            return self._checked(known, where)
        with _seeded(0):
            targets = [self._target(index) for index in range(len(self))]
        try:
            values = stacked(targets)
            self._lengths = lengths_of(targets)
        except Exception as error:
            raise DataError(f"{where} are not numbers: {error}.") from error
        return self._checked(values, where)

    def _checked(self, values: Any, where: str) -> Tree:
        if isinstance(values, list):
            self._lengths = lengths_of(values)
            values = stacked(values)
        return checked_targets(values, where, task=self._task)

    def _target(self, index: int) -> Any:
        item = self._item(index)
        if self._collate is None or self._is_pair(item):
            return pair_of(item, f"{self._where}: sample {index}")[1]
        joined = tree_of(
            pair_of(self._joined([item], [index]), f"{self._where}: a batch of sample {index}")[1], self._where
        )
        return mapped(lambda tensor: tensor[0], joined)

    def _is_pair(self, item: Any) -> bool:
        try:
            pair_of(item, "")
        except DataError:
            return False
        return True

    def _item(self, index: int) -> Any:
        try:
            return self._dataset[index]
        except Exception as error:
            raise DataError(f"{self._where}: reading sample {index} failed: {told(error)}.") from error


def _known_targets(dataset: Any) -> Any:
    """Return the targets that a data set stores in ``targets``, ``labels`` or a column, without reading inputs; None if it stores none."""
    if getattr(dataset, "target_transform", None) is not None:
        return None
    if isinstance(dataset, torch.utils.data.Subset):
        base = _known_targets(dataset.dataset)
        return None if base is None else [base[index] for index in dataset.indices]
    known = (getattr(dataset, name, None) for name in ("targets", "labels"))
    kept = next((values for values in known if hasattr(values, "__len__")), None)
    columns = [name for name in TARGET_KEYS if name in (getattr(dataset, "column_names", None) or ())]
    if kept is None and len(columns) == 1:
        try:
            kept = list(dataset[columns[0]])
        except Exception:  # the data set has columns, but can only be read by rows, which contain the same targets
            return None
    return kept


@contextmanager
def _seeded(seed: int) -> Generator[None]:
    """Seed torch, numpy and random within the block, and restore their states."""
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


def _cut(target: Tensor, lengths: Tensor | None, rows: Tensor) -> Tensor:
    """Cut targets [M, L] to the longest of them, without the padding that all of them have."""
    return target if lengths is None or not len(rows) else target[:, : int(lengths[rows].max())]
