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
from sparsify.loading.sources import Asked, GivenAs, Parts, Stored, read
from sparsify.loading.targets import count_classes, sample_classes
from sparsify.parts.samples import Samples
from sparsify.parts.trees import Tree
from sparsify.reading.images import Progress
from sparsify.reading.pixels import Channels


@dataclass(frozen=True)
class Data:
    """The samples of a data set in three parts.

    Attributes:
        train, validation, test: samples with their targets. If the data have no validation part, it is held out of the training part.
        classes: number of classes, from the training targets; 0 if these are not class numbers.
        class_names: names of all classes, or of the columns of targets [N, K], if the data contain them.
        statistics: mean and standard deviation per channel by which a single input was normalised; None: it was not normalised.
        ood: out-of-distribution inputs by name, prepared like the others (`sparsify.loading.load_ood`); their targets have no meaning.
        ood_validation: other such inputs, on which a score may be chosen.
        given_as: ``bytes`` (images), ``numbers`` (other arrays), or ``prepared`` (from a factory or a table, or several inputs).
        stored: the stored form: ``files`` (image files, or images encoded in an archive), ``digits``, ``prepared`` (a factory), ``table``,
            ``named`` (arrays of several inputs), or the layout of the array of a single input: ``NF``, ``NHW``, ``NHWC`` or ``NCHW``.
        preparation: how a table or several inputs became tensors, as JSON-compatible data for users of an exported file; else empty.
    """

    train: Samples
    validation: Samples
    test: Samples
    classes: int
    class_names: tuple[str, ...] | None = None
    statistics: tuple[Tensor, Tensor] | None = None
    ood: Mapping[str, Samples] = field(default_factory=dict)
    ood_validation: Mapping[str, Samples] = field(default_factory=dict)
    given_as: GivenAs = "bytes"
    stored: Stored = "files"
    preparation: Mapping[str, Any] = field(default_factory=dict)

    def example(self, count: int = 2) -> Tree:
        """Return the first ``count`` held-out inputs [count, ...]."""
        return self.validation.batch(torch.arange(min(count, len(self.validation)))).inputs

    def fingerprint(self) -> str:
        """Compute a SHA-256 over all three parts."""
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
    """Load data and split them into training, validation and test samples.

    - ``digits``: scikit-learn's 8x8 handwritten digits, embedded.
    - ``file.npz``: arrays ``x_train, y_train, x_test, y_test``, optionally ``x_validation, y_validation`` and text ``class_names``. x holds
      uint8 images [N, H, W], [N, H, W, C] or [N, C, H, W], float images, or float features [N, F]. Encoded images are given as
      ``images_train`` (bytes), ``offsets_train``, ``y_train``, and the same for test. Several inputs are given as ``x_train.<name>``, with
      the names of the arguments of ``forward``.
    - ``file.csv``: a header and rows; ``target`` names the column to predict. Numbers are standardised, categories one-hot encoded.
    - a folder: ``train/<class>/*.png`` and ``test/<class>/*.png``, optionally ``val/``. The classes are the folders, sorted by name.
    - ``file.py:factory``: returns train and test, or train, validation and test, as a tuple or a mapping. Each part is a pair (x, y), a
      mapping with a key ``labels``, ``label``, ``target`` or ``y``, a map-style torch Dataset or a sequence of such samples, or a
      DataLoader. Only the dataset and the collate function of a DataLoader are used; the trainer determines batches, order and seeds.

    Targets are class numbers [N], or what another task needs: numbers, truth values, or class numbers of positions. Images given as bytes,
    and float images that are the single input of an ``.npz``, are normalised per channel with mean and standard deviation of the training
    part; features and the results of a factory are not.

    Args:
        text: which data to load.
        seed: seed of the hold-out. It is stratified if targets are one class per sample and it has at least as many samples as classes.
        holdout: fraction of the training part kept for validation and calibration if the data have no validation part, in (0, 1).
        test_holdout: fraction of the training part kept for testing if the data have no test part; always the same samples.
        train_samples: number of samples of the training part to use, including those that are then held out; a stratified draw by
            ``seed``. None: all.
        image_size: side in pixels to which the images of a folder, or encoded images, are resized.
        normalise: whether images and columns of a table are normalised.
        channels: how to read images of a folder and encoded images: ``rgb``, ``grey``, or ``auto``, which follows the training images.
        mean, std: numbers to subtract and to divide by, instead of those of the training part: one per channel or feature, or one for all;
            bytes are scaled to [0, 1] first. None: those of the training part.
        task: name of the task, which decides whether whole numbers are classes; None: unknown, so targets of any task are accepted.
        target, category_columns, ignore_columns: columns of a table to predict, to read as categories, and to leave out.
        on_progress: called while encoded images are decoded.

    Raises:
        DataError: If the data are missing, malformed or unusable.
        LoadError: If a factory is missing or fails.
    """
    columns = (tuple(target), tuple(category_columns), tuple(ignore_columns))
    found = read(Asked(text, image_size, normalise, channels, mean, std, task, *columns, test_holdout), on_progress)
    parts = dict(found.parts)
    classes = _checked(text, parts, found.names, task)
    if found.stored != "table" and "test" in parts and test_holdout is not None:
        raise DataError(f"{text} already has a test part. Leave test_holdout out.")
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
    """Return the number of classes among the training targets; 0 if they are not classes.

    Raises:
        DataError: If the training part lacks a class that another part has, or ``names`` do not fit the number of classes.
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
        raise DataError(f"{text}: {len(names)} class_names for {count} classes. Give one name per class.")
    return count


def _check_names(text: str, names: Sequence[str] | None, targets: Tree, count: int, task: str | None) -> None:
    """Check the names of the classes of positions, or of the columns of targets [N, K].

    Raises:
        DataError: If there are too few names, or the number of names differs from the number of columns.
    """
    if names is None or task is None or not isinstance(targets, Tensor):
        return
    columns = targets.shape[1] if targets.ndim == 2 else 1
    positions = task in ("dense", "sequence")
    if len(names) < count if positions else len(names) != columns and task in ("multilabel", "regression"):
        wanted = f"{count} classes" if positions else f"{columns} columns of targets"
        raise DataError(f"{text}: {len(names)} class_names for {wanted}. Give one name for each.")
