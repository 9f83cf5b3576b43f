"""Reads data of any form (digits, a file of arrays, a table, a folder of images, a factory), without splitting them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sparsify.errors import DataError
from sparsify.loading.arrays import samples_of_arrays
from sparsify.loading.columns import samples_of_table
from sparsify.loading.datasets import samples_of_factory
from sparsify.loading.images import samples_of_folder
from sparsify.loading.once import once
from sparsify.loading.tables import read_table
from sparsify.parts.samples import Samples, TensorSamples
from sparsify.reading.arrays import Arrays, encoded_inputs, read_npz, stored_layout
from sparsify.reading.digits import digits_arrays
from sparsify.reading.images import Progress
from sparsify.reading.pixels import Channels

Stored = Literal["files", "digits", "prepared", "table", "named", "NF", "NHW", "NHWC", "NCHW"]
GivenAs = Literal["bytes", "numbers", "prepared"]
Parts = dict[str, Samples]
"""``train``, and ``test`` and ``validation`` if the data have them."""
TABLES = {".csv", ".tsv"}


@dataclass(frozen=True)
class Asked:
    """The arguments of `sparsify.loading.load_data`."""

    text: str
    image_size: int | None
    normalise: bool
    channels: Channels
    mean: Sequence[float] | None
    std: Sequence[float] | None
    task: str | None
    target: tuple[str, ...]
    category_columns: tuple[str, ...]
    ignore_columns: tuple[str, ...]
    test_holdout: float | None


@dataclass(frozen=True)
class Source:
    """Data as they were read, not yet split.

    Attributes:
        parts: samples by part.
        names: ``class_names`` of `sparsify.loading.Data`, which also describes the other fields.
    """

    parts: Parts
    stored: Stored
    names: tuple[str, ...] | None = None
    given_as: GivenAs = "prepared"
    statistics: tuple[Tensor, Tensor] | None = None
    preparation: Mapping[str, Any] = field(default_factory=dict)


def read(asked: Asked, on_progress: Progress | None = None) -> Source:
    """Read the data that a text names.

    Raises:
        DataError: If they are missing, malformed or unusable, or an option does not apply to them.
        LoadError: If a factory is missing or fails.
    """
    text, path = asked.text, Path(asked.text)
    folder, factory = path.is_dir(), ":" in text and not path.exists()
    table = not folder and not factory and path.suffix.lower() in TABLES
    for key, given in (("image_size", asked.image_size is not None), ("channels", asked.channels != "auto")):
        if given and not folder and (text == "digits" or table or not path.is_file()):
            raise DataError(f"{text}: {key} is for folders of images and for encoded images. Leave it out.")
    columns = {
        "target": asked.target,
        "category_columns": asked.category_columns,
        "ignore_columns": asked.ignore_columns,
    }
    if not table and (given := [key for key, value in columns.items() if value]):
        raise DataError(
            f"{text}: {' and '.join(given)} should name columns of a table, and this is none. Give a .csv file, or leave them out."
        )
    statistics = _given_statistics(asked, prepared="a factory" if factory else "a table" if table else "")
    if table:
        return _table(asked)
    if factory:
        return Source(samples_of_factory(text, task=asked.task), "prepared")
    if folder:
        options = {"size": asked.image_size, "normalise": asked.normalise, "channels": asked.channels}
        parts, names = once(text, asked.task, lambda: samples_of_folder(path, statistics=statistics, **options))
        return Source(parts, "files", names, "bytes", _statistics(parts["train"]))
    arrays, names = digits_arrays(), None
    if text != "digits":
        options = {"size": asked.image_size, "channels": asked.channels}
        arrays = once(text, asked.task, lambda: read_npz(path, on_progress=on_progress, **options))
        names = tuple(map(str, arrays["class_names"].ravel())) if "class_names" in arrays else None
        if asked.channels != "auto" and not encoded_inputs(path):
            raise DataError(f"{text} holds no encoded images, whose channels could be chosen. Leave channels out.")
    parts = samples_of_arrays(text, arrays, normalise=asked.normalise, statistics=statistics, task=asked.task)
    if text == "digits":
        return Source(parts, "digits", None, "bytes", _statistics(parts["train"]))
    train = parts["train"]
    assert isinstance(train, TensorSamples)
    if "x_train" not in arrays:
        return Source(parts, "named", names, preparation=_preparation(train, arrays, encoded_inputs(path)))
    stored: Stored = "files" if encoded_inputs(path) else stored_layout(arrays["x_train"])
    return Source(parts, stored, names, "bytes" if train.inputs.dtype is torch.uint8 else "numbers", _statistics(train))


def _table(asked: Asked) -> Source:
    found = samples_of_table(
        once(asked.text, asked.task, lambda: read_table(Path(asked.text))),
        target=asked.target,
        categories=asked.category_columns,
        ignored=asked.ignore_columns,
        test_holdout=asked.test_holdout,
        normalise=asked.normalise,
        task=asked.task,
    )
    return Source(found.parts, "table", found.class_names, preparation=found.preparation)


def _statistics(samples: Samples) -> tuple[Tensor, Tensor] | None:
    mean, std = getattr(samples, "mean", None), getattr(samples, "std", None)
    return None if mean is None or std is None else (mean, std)


def _preparation(samples: TensorSamples, arrays: Arrays, encoded: Collection[str]) -> dict[str, Any]:
    """Describe how several arrays become inputs, for users of an exported file.

    Bytes are divided by 255 and normalised; other arrays stay unchanged. ``stored`` is the layout of bytes in the archive, or ``files`` for
    inputs that are ``encoded``.
    """
    mean, std = samples.mean, samples.std
    inputs: dict[str, Any] = {}
    for name, tensor in samples.inputs.items():
        inputs[name] = {"scale": 255 if tensor.dtype is torch.uint8 else 1}
        if tensor.dtype is torch.uint8:
            inputs[name]["stored"] = "files" if name in encoded else stored_layout(arrays[f"x_train.{name}"])
        if isinstance(mean, Mapping) and isinstance(std, Mapping) and name in mean:
            inputs[name] |= {"mean": mean[name].tolist(), "std": std[name].tolist()}
    return {"kind": "arrays", "inputs": inputs}


def _given_statistics(asked: Asked, *, prepared: str) -> tuple[Tensor, Tensor] | None:
    """Check and return the user's mean and standard deviation; None if none are given."""
    text, mean, std = asked.text, asked.mean, asked.std
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise DataError(
            f"{text}: mean and std go together, and {'mean' if mean is None else 'std'} is missing. Give both, or neither."
        )
    if prepared or not asked.normalise:
        why = f"{prepared} prepares its inputs itself" if prepared else "normalise = 'none' asks for no normalisation"
        raise DataError(f"{text}: mean and std are given, and {why}. Leave one of the two out.")
    values = torch.tensor(list(mean)).float(), torch.tensor(list(std)).float()
    if not all(len(value) and bool(value.isfinite().all()) for value in values) or bool((values[1] <= 0).any()):
        raise DataError(
            f"{text}: mean should hold finite numbers and std numbers above 0, found {list(mean)} and {list(std)}."
        )
    return values
