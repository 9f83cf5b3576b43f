"""Data: ``digits``, ``file.npz``, an image folder, or a factory; always split into training, validation and test samples."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from sparsify.errors import DataError
from sparsify.loading.arrays import Arrays, read_npz, samples_of_arrays
from sparsify.loading.datasets import samples_of_factory
from sparsify.loading.images import samples_of_folder
from sparsify.parts.samples import Samples, Subset

Parts = dict[str, Samples]
"""``train`` and ``test``, and ``validation`` where the data bring their own."""


@dataclass(frozen=True)
class Data:
    """Labelled samples; validation is held out of the training part unless the data bring it.

    Attributes:
        train, validation, test: samples, inputs [N, ...] float32 and int64 labels.
        classes: number of classes, from the training labels.
    """

    train: Samples
    validation: Samples
    test: Samples
    classes: int

    def example(self, count: int = 2) -> Tensor:
        """The first ``count`` held-out inputs [count, ...]."""
        return self.validation.batch(torch.arange(min(count, len(self.validation))))[0]

    def fingerprint(self) -> str:
        """SHA-256 over all three parts."""
        texts = "".join(part.fingerprint() for part in (self.train, self.validation, self.test))
        return hashlib.sha256(texts.encode()).hexdigest()


def load_data(text: str, *, seed: int, holdout: float = 0.15, image_size: int | None = None) -> Data:
    """Data by name.

    - ``digits``: scikit-learn's 8x8 handwritten digits, embedded.
    - ``file.npz``: ``x_train, y_train, x_test, y_test`` (and ``x_validation, y_validation``); x is uint8 images [N, H, W] or
      [N, H, W, C], or float [N, F] or [N, C, H, W]; or encoded images as ``images_train`` (bytes), ``offsets_train``, ``y_train``
      and the same for test.
    - a folder: ``train/<class>/*.png`` and ``test/<class>/*.png``, and ``val/`` where it exists; classes are the folders, sorted by name.
    - ``file.py:factory``: returns train and test (and validation between them) as a tuple or a mapping; each is a pair (x, y), a
      map-style torch Dataset, or a DataLoader, whose dataset and collate function are used; batches, order and seeds are the trainer's.

    Images of the first three forms are normalised per channel with the training part's mean and standard deviation.

    Args:
        text: which data.
        seed: of the stratified hold-out.
        holdout: fraction of the training part kept for validation and calibration, in (0, 1).
        image_size: side in pixels to which the images of a folder are resized.

    Raises:
        DataError: If the data are missing, malformed or unusable; the message says what to do.
        LoadError: If a factory is missing or fails.
    """
    if text == "digits":
        parts: Parts = samples_of_arrays(text, _digits())
    elif ":" in text and not Path(text).exists():
        parts = samples_of_factory(text)
    elif Path(text).is_dir():
        parts = samples_of_folder(Path(text), size=image_size)
    else:
        parts = samples_of_arrays(text, read_npz(Path(text)))
    counts = np.bincount(parts["train"].labels.numpy())
    for name in parts.keys() - {"train"}:
        highest = int(parts[name].labels.max())
        if highest >= len(counts):
            raise DataError(
                f"{text}: {name} label {highest} never occurs in training, whose labels are 0 to {len(counts) - 1}."
            )
    if (counts > 0).sum() < 2:
        raise DataError(
            f"{text}: all training labels are {int(parts['train'].labels[0])}; a classifier needs at least two classes."
        )
    if "validation" not in parts:
        parts["train"], parts["validation"] = _held_out(text, parts["train"], counts, seed=seed, holdout=holdout)
    return Data(parts["train"], parts["validation"], parts["test"], classes=len(counts))


def _digits() -> Arrays:
    images, target = load_digits(return_X_y=True)
    labels = np.asarray(target)
    pixels = (np.asarray(images).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    kept, held = train_test_split(np.arange(len(labels)), test_size=360, random_state=0, stratify=labels)
    return {"x_train": pixels[kept], "y_train": labels[kept], "x_test": pixels[held], "y_test": labels[held]}


def _held_out(text: str, train: Samples, counts: np.ndarray, *, seed: int, holdout: float) -> tuple[Samples, Samples]:
    if len(train) < 4:
        raise DataError(f"{text}: {len(train)} training samples cannot be split into training and validation parts.")
    present = counts[counts > 0]
    count = max(1, round(holdout * len(train)))
    evenly = present.min() >= 2 and count >= len(present)
    kept, held = train_test_split(
        np.arange(len(train)), test_size=count, random_state=seed, stratify=train.labels.numpy() if evenly else None
    )
    return Subset(train, torch.from_numpy(np.sort(kept))), Subset(train, torch.from_numpy(np.sort(held)))
