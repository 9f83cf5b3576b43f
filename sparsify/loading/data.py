"""Data: ``digits``, ``file.npz``, ``file.csv``, an image folder, or a factory; always split into training, validation and test samples."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparsify.errors import DataError
from sparsify.loading.holdout import AMOUNTS, drawn, held_out
from sparsify.loading.images import Progress
from sparsify.loading.pixels import Channels
from sparsify.loading.sources import Asked, GivenAs, Parts, Stored, read
from sparsify.loading.targets import count_classes, sample_classes
from sparsify.parts.samples import Samples
from sparsify.parts.trees import Tree


@dataclass(frozen=True)
class Data:
    """Samples with their targets; validation is held out of the training part unless the data bring it.

    Attributes:
        train, validation, test: samples.
        classes: number of classes, from the training targets; 0 where these are no class numbers.
        class_names: of all classes, or of the columns of targets [N, K], where the data bring them.
        statistics: mean and standard deviation per channel that an only input was normalised by; None: it was not.
        ood: out-of-distribution inputs by name, prepared like the others (`sparsify.loading.load_ood`); their targets mean nothing.
        given_as: ``bytes`` (images), ``numbers`` (arrays of others), or ``prepared`` (a factory's, a table's, several inputs).
        stored: the form they had: ``files`` (of images, or encoded in an archive), ``digits``, ``prepared`` (a factory's), ``table``,
            ``named`` (arrays of several inputs), or that of the arrays of an only input: ``NF``, ``NHW``, ``NHWC`` or ``NCHW``.
        preparation: how a table or several inputs became tensors, JSON-able, so that a file can be fed; else empty.
    """

    train: Samples
    validation: Samples
    test: Samples
    classes: int
    class_names: tuple[str, ...] | None = None
    statistics: tuple[Tensor, Tensor] | None = None
    ood: Mapping[str, Samples] = field(default_factory=dict)
    given_as: GivenAs = "bytes"
    stored: Stored = "files"
    preparation: Mapping[str, Any] = field(default_factory=dict)

    def example(self, count: int = 2) -> Tree:
        """Return the first ``count`` held-out inputs [count, ...]."""
        return self.validation.batch(torch.arange(min(count, len(self.validation)))).inputs

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
    task: str | None = None,
    target: Sequence[str] = (),
    category_columns: Sequence[str] = (),
    ignore_columns: Sequence[str] = (),
    on_progress: Progress | None = None,
) -> Data:
    """Data by name.

    - ``digits``: scikit-learn's 8x8 handwritten digits, embedded.
    - ``file.npz``: ``x_train, y_train, x_test, y_test`` (and ``x_validation, y_validation``, and text ``class_names``); x is uint8 images
      [N, H, W], [N, H, W, C] or [N, C, H, W], or float features [N, F] or images; or encoded images as ``images_train`` (bytes),
      ``offsets_train``, ``y_train`` and the same for test. Several inputs: ``x_train.<name>`` each, by the names of ``forward``.
    - ``file.csv``: a header and rows; ``target`` names the column to predict. Numbers are standardised, categories one-hot.
    - a folder: ``train/<class>/*.png`` and ``test/<class>/*.png``, and ``val/`` where it exists; classes are the folders, sorted by name.
    - ``file.py:factory``: returns train and test (and validation between them) as a tuple or a mapping; each is a pair (x, y), a mapping
      with a key ``labels``, ``label``, ``target`` or ``y``, a map-style torch Dataset or rows of such, or a DataLoader, whose dataset and
      collate function are used; batches, order and seeds are the trainer's.

    Targets are class numbers [N], or what another task needs: numbers, truth values, class numbers of positions. Images given as bytes are
    normalised per channel with the training part's mean and standard deviation, as are float images that are an only input of an ``.npz``;
    features, and what a factory returns, are not.

    Args:
        text: which data.
        seed: of the hold-out, which is stratified where targets are one class per sample, unless it is smaller than the number of classes.
        holdout: fraction of the training part kept for validation and calibration where the data bring none, in (0, 1).
        test_holdout: fraction of the training part kept for testing, always the same samples, where the data bring no test part.
        train_samples: how many of the training part are used, stratified, drawn by ``seed``, before some are held out; None: all.
        image_size: side in pixels to which the images of a folder, or encoded images, are resized.
        normalise: whether images and columns of a table are normalised.
        channels: of the images of a folder, or encoded images: ``rgb``, ``grey``, or ``auto``, as those of the training part are.
        mean, std: one number per channel (of features: per feature) or one for all, subtracted and divided by in place of the training
            part's own; of bytes as [0, 1]. None: the training part's.
        task: the name of the task, which decides whether whole numbers are classes; None: not known yet, and targets of any task are taken.
        target, category_columns, ignore_columns: columns of a table to predict, to read as categories, and to leave out.
        on_progress: called while encoded images are decoded.

    Raises:
        DataError: If the data are missing, malformed or unusable; the message says what to do.
        LoadError: If a factory is missing or fails.
    """
    columns = (tuple(target), tuple(category_columns), tuple(ignore_columns))
    found = read(Asked(text, image_size, normalise, channels, mean, std, task, *columns, test_holdout), on_progress)
    parts = dict(found.parts)
    classes = _checked(text, parts, found.names, task)
    if found.stored != "table" and "test" in parts and test_holdout is not None:
        raise DataError(f"{text} brings a test part; leave test_holdout out.")
    if "test" not in parts:
        if test_holdout is None:
            raise DataError(
                f"{text} has no test part. Add one, or set data.test_holdout = 0.15 to keep that much of the training part for testing."
            )
        parts["train"], parts["test"] = held_out(text, parts["train"], seed=0, fraction=test_holdout, task=task)
    if train_samples is not None:
        parts["train"] = drawn(text, parts["train"], train_samples, seed=seed, task=task)
    if "validation" not in parts:
        parts["train"], parts["validation"] = held_out(text, parts["train"], seed=seed, fraction=holdout, task=task)
    return Data(
        parts["train"],
        parts["validation"],
        parts["test"],
        classes=classes,
        class_names=found.names,
        statistics=found.statistics,
        given_as=found.given_as,
        stored=found.stored,
        preparation=found.preparation,
    )


def _checked(text: str, parts: Parts, names: Sequence[str] | None, task: str | None) -> int:
    """Return the number of classes among the training targets, 0 where they are no classes.

    Raises:
        DataError: If classes are missing from the training part, or ``names`` are not as many as there are.
    """
    targets = parts["train"].targets
    train, count, hint = (
        sample_classes(targets, task),
        count_classes(targets, task),
        "" if task == "binary" else AMOUNTS,
    )
    if train is None:
        _check_names(text, names, targets, count, task)
        return count
    for name in parts.keys() - {"train"}:
        found = sample_classes(parts[name].targets, task)
        highest = "of another kind" if found is None else int(found.max())
        if isinstance(highest, str) or highest >= count:
            raise DataError(
                f"{text}: {name} label {highest} never occurs in training, whose labels are 0 to {count - 1}.{hint}"
            )
    if len(train.unique()) < 2:
        raise DataError(
            f"{text}: all training labels are {int(train[0])}; a classifier needs at least two classes.{hint}"
        )
    if names is not None and len(names) != count:
        raise DataError(f"{text}: {len(names)} class_names for {count} classes; they should be as many.")
    return count


def _check_names(text: str, names: Sequence[str] | None, targets: Tree, count: int, task: str | None) -> None:
    """Names of the classes of positions, or of the columns of targets [N, K].

    Raises:
        DataError: If they are too few, or not as many as the columns.
    """
    if names is None or task is None or not isinstance(targets, Tensor):
        return
    columns = targets.shape[1] if targets.ndim == 2 else 1
    positions = task in ("dense", "sequence")
    if len(names) < count if positions else len(names) != columns and task in ("multilabel", "regression"):
        wanted = f"{count} classes" if positions else f"{columns} columns of targets"
        raise DataError(f"{text}: {len(names)} class_names for {wanted}; they should be as many.")
