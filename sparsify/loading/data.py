"""Data: ``digits``, ``file.npz``, an image folder, or a factory; always split into training, validation and test samples."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sparsify.errors import DataError
from sparsify.loading.arrays import Arrays, holds_encoded_images, read_npz, samples_of_arrays, stored_layout
from sparsify.loading.datasets import samples_of_factory
from sparsify.loading.images import Progress, samples_of_folder
from sparsify.loading.pixels import Channels
from sparsify.parts.samples import Samples, Subset, TensorSamples

Stored = Literal["files", "digits", "prepared", "NF", "NHW", "NHWC", "NCHW"]
Parts = dict[str, Samples]
"""``train`` and ``test``, and ``validation`` where the data bring their own."""


@dataclass(frozen=True)
class Data:
    """Labelled samples; validation is held out of the training part unless the data bring it.

    Attributes:
        train, validation, test: samples, inputs [N, ...] float32 and int64 labels.
        classes: number of classes, from the training labels.
        class_names: of all classes, where the data bring them.
        statistics: mean and standard deviation per channel that images were normalised by; None: they were not.
        ood: out-of-distribution inputs by name, prepared like the others (`sparsify.loading.load_ood`); their labels mean nothing.
        given_as: ``bytes`` (images), ``numbers`` (arrays of others), or ``prepared`` (a factory's, taken as they are).
        stored: the form they had: ``files`` (of images, or encoded in an archive), ``digits``, ``prepared``, or that of the arrays: ``NF``,
            ``NHW``, ``NHWC`` or ``NCHW``.
    """

    train: Samples
    validation: Samples
    test: Samples
    classes: int
    class_names: tuple[str, ...] | None = None
    statistics: tuple[Tensor, Tensor] | None = None
    ood: Mapping[str, Samples] = field(default_factory=dict)
    given_as: Literal["bytes", "numbers", "prepared"] = "bytes"
    stored: Stored = "files"

    def example(self, count: int = 2) -> Tensor:
        """The first ``count`` held-out inputs [count, ...]."""
        return self.validation.batch(torch.arange(min(count, len(self.validation))))[0]

    def fingerprint(self) -> str:
        """SHA-256 over all three parts."""
        texts = "".join(part.fingerprint() for part in (self.train, self.validation, self.test))
        return hashlib.sha256(texts.encode()).hexdigest()


def load_data(
    text: str,
    *,
    seed: int,
    holdout: float = 0.15,
    test_holdout: float | None = None,
    train_samples: int | None = None,
    image_size: int | None = None,
    normalise: bool = True,
    channels: Channels = "auto",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    on_progress: Progress | None = None,
) -> Data:
    """Data by name.

    - ``digits``: scikit-learn's 8x8 handwritten digits, embedded.
    - ``file.npz``: ``x_train, y_train, x_test, y_test`` (and ``x_validation, y_validation``, and text ``class_names``); x is uint8 images
      [N, H, W], [N, H, W, C] or [N, C, H, W], or float features [N, F] or images; or encoded images as ``images_train`` (bytes),
      ``offsets_train``, ``y_train`` and the same for test.
    - a folder: ``train/<class>/*.png`` and ``test/<class>/*.png``, and ``val/`` where it exists; classes are the folders, sorted by name.
    - ``file.py:factory``: returns train and test (and validation between them) as a tuple or a mapping; each is a pair (x, y), a
      map-style torch Dataset, or a DataLoader, whose dataset and collate function are used; batches, order and seeds are the trainer's.

    Images of the first three forms are normalised per channel with the training part's mean and standard deviation; features, and what a
    factory returns, are not.

    Args:
        text: which data.
        seed: of the hold-out, which is stratified unless it is smaller than the number of classes.
        holdout: fraction of the training part kept for validation and calibration where the data bring none, in (0, 1).
        test_holdout: fraction of the training part kept for testing, always the same samples, where the data bring no test part.
        train_samples: how many of the training part are used, stratified, drawn by ``seed``, before some are held out; None: all.
        image_size: side in pixels to which the images of a folder, or encoded images, are resized.
        normalise: whether images are normalised.
        channels: of the images of a folder, or encoded images: ``rgb``, ``grey``, or ``auto``, as those of the training part are.
        mean, std: one number per channel (of features: per feature) or one for all, subtracted and divided by in place of the training
            part's own; of bytes as [0, 1]. None: the training part's.
        on_progress: called while encoded images are decoded.

    Raises:
        DataError: If the data are missing, malformed or unusable; the message says what to do.
        LoadError: If a factory is missing or fails.
    """
    names: tuple[str, ...] | None = None
    folder, factory = Path(text).is_dir(), ":" in text and not Path(text).exists()
    if image_size is not None and not folder and (text == "digits" or not Path(text).is_file()):
        raise DataError(f"{text}: image_size is for folders of images and for encoded images. Leave it out.")
    given = _given_statistics(text, mean, std, normalise=normalise, prepared=factory)
    stored: Stored = "files"
    if text == "digits":
        parts: Parts = samples_of_arrays(text, digits_arrays(), normalise=normalise, statistics=given)
        stored = "digits"
    elif factory:
        parts = samples_of_factory(text)
        stored = "prepared"
    elif folder:
        parts, names = samples_of_folder(
            Path(text), size=image_size, normalise=normalise, channels=channels, statistics=given
        )
    else:
        arrays = read_npz(Path(text), size=image_size, channels=channels, on_progress=on_progress)
        names = tuple(map(str, arrays["class_names"].ravel())) if "class_names" in arrays else None
        parts = samples_of_arrays(text, arrays, normalise=normalise, statistics=given)
        stored = "files" if holds_encoded_images(Path(text)) else stored_layout(arrays["x_train"])
    counts = np.bincount(parts["train"].targets.numpy())
    for name in parts.keys() - {"train"}:
        highest = int(parts[name].targets.max())
        if highest >= len(counts):
            raise DataError(
                f"{text}: {name} label {highest} never occurs in training, whose labels are 0 to {len(counts) - 1}."
            )
    if (counts > 0).sum() < 2:
        raise DataError(
            f"{text}: all training labels are {int(parts['train'].targets[0])}; a classifier needs at least two classes."
        )
    if names is not None and len(names) != len(counts):
        raise DataError(f"{text}: {len(names)} class_names for {len(counts)} classes; they should be as many.")
    train = parts["train"]
    used = getattr(train, "mean", None), getattr(train, "std", None)
    numbers = isinstance(train, TensorSamples) and train.inputs.dtype is not torch.uint8
    if ("test" in parts) == (test_holdout is not None):
        raise DataError(
            f"{text} brings a test part; leave test_holdout out."
            if "test" in parts
            else f"{text} has no test part. Add one, or set test_holdout = 0.15 to keep that much of the training part for testing."
        )
    if test_holdout is not None:
        parts["train"], parts["test"] = _held_out(text, parts["train"], seed=0, fraction=test_holdout)
    if train_samples is not None:
        parts["train"] = _drawn(text, parts["train"], train_samples, seed=seed)
    if "validation" not in parts:
        parts["train"], parts["validation"] = _held_out(text, parts["train"], seed=seed, fraction=holdout)
    return Data(
        parts["train"],
        parts["validation"],
        parts["test"],
        classes=len(counts),
        class_names=names,
        statistics=None if used[0] is None or used[1] is None else (used[0], used[1]),
        given_as="prepared" if factory else "numbers" if numbers else "bytes",
        stored=stored,
    )


def _given_statistics(
    text: str, mean: Sequence[float] | None, std: Sequence[float] | None, *, normalise: bool, prepared: bool
) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation of the user's, checked; None where there are none."""
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise DataError(
            f"{text}: mean and std go together, and {'mean' if mean is None else 'std'} is missing. Give both, or neither."
        )
    if prepared or not normalise:
        why = "a factory prepares its inputs itself" if prepared else "normalise = 'none' asks for no normalisation"
        raise DataError(f"{text}: mean and std are given, and {why}. Leave one of the two out.")
    values = torch.tensor(list(mean)).float(), torch.tensor(list(std)).float()
    if not all(len(value) and bool(value.isfinite().all()) for value in values) or bool((values[1] <= 0).any()):
        raise DataError(
            f"{text}: mean should hold finite numbers and std numbers above 0, found {list(mean)} and {list(std)}."
        )
    return values


def digits_arrays() -> Arrays:
    """Scikit-learn's digits as bytes, split once and for all."""
    from sklearn.datasets import load_digits  # takes a second, which a command without data should not wait

    images, target = load_digits(return_X_y=True)
    labels = np.asarray(target)
    pixels = (np.asarray(images).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    kept, held = _split(labels, held=360, seed=0, stratified=True)
    return {"x_train": pixels[kept], "y_train": labels[kept], "x_test": pixels[held], "y_test": labels[held]}


def _drawn(text: str, train: Samples, count: int, *, seed: int) -> Samples:
    labels = train.targets.numpy()
    classes = int((np.bincount(labels) > 0).sum())
    if count >= len(labels):
        raise DataError(
            f"{text} has {len(labels)} training samples, and train_samples is {count}. Lower it, or leave it out."
        )
    if count < 2 * classes or len(labels) - count < classes:
        raise DataError(
            f"{text}: train_samples should be between {2 * classes}, two of each class, and {len(labels) - classes}, found {count}."
        )
    kept, _ = _split(labels, held=len(labels) - count, seed=seed, stratified=True)
    return Subset(train, torch.from_numpy(np.sort(kept)))


def _split(labels: np.ndarray, *, held: int, seed: int, stratified: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are kept and rows that are held out."""
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(labels))
    kept, out = train_test_split(rows, test_size=held, random_state=seed, stratify=labels if stratified else None)
    return np.asarray(kept), np.asarray(out)


def _held_out(text: str, train: Samples, *, seed: int, fraction: float) -> tuple[Samples, Samples]:
    labels = train.targets.numpy()
    counts = np.bincount(labels)
    scarce = np.flatnonzero(counts == 1)
    if len(scarce):
        raise DataError(
            f"{text}: class {scarce[0]} has a single training sample, at {int((labels == scarce[0]).argmax())}, which cannot be in "
            f"both the training and a held-out part. Add samples, drop the class, or bring a validation part."
        )
    held_count, classes = max(1, round(fraction * len(labels))), int((counts > 0).sum())
    if len(labels) - held_count < classes:
        raise DataError(
            f"{text}: keeping {held_count} of {len(labels)} training samples leaves fewer than the {classes} classes. Lower holdout."
        )
    kept, held = _split(labels, held=held_count, seed=seed, stratified=held_count >= classes)
    return Subset(train, torch.from_numpy(np.sort(kept))), Subset(train, torch.from_numpy(np.sort(held)))
