"""Out-of-distribution inputs: unlabelled, and prepared in the same way as the training data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsify.errors import DataError
from sparsify.loading.arrays import checked_inputs
from sparsify.loading.data import Data
from sparsify.loading.datasets import samples_of_part
from sparsify.loading.factories import call_factory
from sparsify.loading.images import ImageFiles
from sparsify.parts.samples import Batch, Samples, TensorSamples
from sparsify.parts.trees import Tree
from sparsify.reading.digits import LUMA
from sparsify.reading.images import SUFFIXES, Progress
from sparsify.reading.ood import image_shape, ood_array


def load_ood(text: str, data: Data, *, on_progress: Progress | None = None) -> Samples:
    """Load out-of-distribution inputs by name, with the size, channels and normalisation of ``data``; labels are not read.

    - ``file.npz``: the array ``x_test``, or else ``x``, of the shape of the training inputs. Or encoded images, ``images_test`` and
      ``offsets_test``, which are resized, and made grey if the training images are grey.
    - a folder: all images below it (below its ``test/`` if it exists), resized and made grey in the same way.
    - ``file.py:factory``: returns one data set: a pair (x, y), a Dataset or a DataLoader, whose inputs stay unchanged.
    - ``photos``: 1000 patches of scikit-learn's two photographs, as large as the training images.
    - ``digits``: the test part of scikit-learn's digits.

    Args:
        text: which inputs to load.
        data: the data that the model is trained on.
        on_progress: called while encoded images are decoded.

    Raises:
        DataError: If the inputs are missing, damaged, or cannot take the shape of the training inputs; the message says what to do.
        LoadError: If a factory is missing or fails.
    """
    example = data.example(1)
    shape: tuple[int, ...] = tuple(example.shape[1:]) if isinstance(example, Tensor) else ()
    if ":" in text and not Path(text).exists():
        samples = samples_of_part(call_factory(text, gives="data"), text)
    elif data.given_as == "prepared":
        raise DataError(
            f"{text}: the training inputs are prepared by a factory, or come from a table or several arrays, so out-of-distribution inputs "
            f"must come from a factory that prepares them in the same way. Give file.py:factory, which returns one data set."
        )
    elif Path(text).is_dir():
        samples = _Prepared(_files(Path(text), shape), data.statistics, grey=shape[:1] == (1,))
    else:
        samples = _prepared(text, ood_array(text, shape, on_progress), data)
    wanted, found = _form(example), _form(samples.batch(torch.arange(1)).inputs)
    if found != wanted:
        raise DataError(
            f"{text}: inputs have shape {found}, but those of the training data have {wanted}. Give encoded images or a folder, which are "
            f"resized, or arrays of that shape. A factory should return the same kind of inputs as for training."
        )
    return samples


def _form(inputs: Tree) -> str:
    """Return the names and shapes of inputs; for tokens, whose length may vary, only the number of dimensions."""
    if isinstance(inputs, Tensor):
        return str(list(inputs.shape[1:]) if inputs.is_floating_point() else ["..."] * (inputs.ndim - 1))
    rows = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
    return "; ".join(f"{name}: {_form(value)}" for name, value in rows)


def _prepared(text: str, x: np.ndarray, data: Data) -> Samples:
    inputs = checked_inputs(text, "x_test", x, True)
    labels = torch.zeros(len(inputs), dtype=torch.int64)
    given_as = "bytes" if inputs.dtype is torch.uint8 else "numbers"
    if given_as != data.given_as:
        raise DataError(
            f"{text}: inputs are given as {given_as}, but those of the training data as {data.given_as}, so their scales may differ. Give "
            f"uint8 images if the training data are uint8 images, and floats on the same scale if they are floats."
        )
    mean, std = data.statistics or (None, None)
    if mean is None or inputs.shape[1] != len(mean):
        return TensorSamples(inputs, labels)
    return TensorSamples(inputs, labels, mean=mean, std=std)


def _files(folder: Path, shape: tuple[int, ...]) -> ImageFiles:
    root = folder / "test" if (folder / "test").is_dir() else folder
    found = [
        path for path in sorted(root.rglob("*")) if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    if not found:
        raise DataError(f"{root} holds no images, which are files that end in {', '.join(sorted(SUFFIXES))}.")
    _, height, width = image_shape(str(folder), shape)
    return ImageFiles(found, [0] * len(found), size=(height, width), resize=True)


class _Prepared:
    """RGB images in [0, 1] that are made grey if required, and then normalised."""

    def __init__(self, base: ImageFiles, statistics: tuple[Tensor, Tensor] | None, *, grey: bool) -> None:
        self._base, self._statistics, self._grey, self.targets = base, statistics, grey, base.targets

    def __len__(self) -> int:
        return len(self._base)

    def batch(self, rows: Tensor, *, seed: int = 0) -> Batch:
        values, labels = self._base.batch(rows, seed=seed)
        if self._grey:
            weights = torch.tensor(LUMA).view(1, 3, 1, 1)
            values = ((values * 255 * weights).sum(1, keepdim=True)).round() / 255
        if self._statistics is not None:
            mean, std = (value.view(1, -1, 1, 1) for value in self._statistics)
            values = (values - mean) / std
        return Batch(values, labels)

    def fingerprint(self) -> str:
        return self._base.fingerprint()
