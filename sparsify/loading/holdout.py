"""Draws and holds out samples by a seed; stratified by class if the targets are one class per sample."""

from __future__ import annotations

import numpy as np
import torch

from sparsify.errors import DataError
from sparsify.loading.targets import sample_classes
from sparsify.parts.samples import Samples, Subset
from sparsify.reading.digits import split

AMOUNTS = " If the targets are amounts and no classes, set the task to 'regression'."


def drawn(text: str, train: Samples, count: int, *, seed: int, task: str | None = None) -> Samples:
    """Draw ``count`` of the training samples.

    Args:
        text: name of the data, for messages.
        train: all training samples.
        count: how many to draw.
        seed: seed of the draw, which is stratified if there is one class per sample.
        task: see `sample_classes`.

    Raises:
        DataError: If there are not more than ``count`` samples, or some class would have too few.
    """
    classes = sample_classes(train.targets, task)
    kinds = 1 if classes is None else len(classes.unique())
    if count >= len(train):
        raise DataError(
            f"{text} has {len(train)} training samples, but train_samples is {count}. Lower it, or leave it out."
        )
    if count < 2 * kinds or len(train) - count < kinds:
        each = "" if classes is None else f"{2 * kinds}, two of each class, and "
        raise DataError(
            f"{text}: train_samples should be between {each or '2 and '}{len(train) - kinds}, found {count}."
        )
    kept, _ = split(
        len(train), held=len(train) - count, seed=seed, classes=None if classes is None else classes.numpy()
    )
    return Subset(train, torch.from_numpy(np.sort(kept)))


def held_out(
    text: str, train: Samples, *, seed: int, fraction: float, task: str | None = None
) -> tuple[Samples, Samples]:
    """Split training samples into those that stay and those that are held out.

    Raises:
        DataError: If a class has only one sample, or too few samples would stay.
    """
    rows = held_rows(text, train.targets, len(train), seed=seed, fraction=fraction, task=task)
    kept, held = (torch.from_numpy(np.sort(some)) for some in rows)
    return Subset(train, kept), Subset(train, held)


def held_rows(
    text: str, targets: object, total: int, *, seed: int, fraction: float, task: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that stay and the rows that are held out.

    Raises:
        DataError: As for `held_out`.
    """
    classes = sample_classes(targets, task)
    held_count = max(1, round(fraction * total))
    if classes is None:
        if total - held_count < 1:
            raise DataError(f"{text}: keeping {held_count} of {total} training samples leaves none. Lower holdout.")
        return split(total, held=held_count, seed=seed)
    counts = np.bincount(classes.numpy())
    kinds, scarce = int((counts > 0).sum()), np.flatnonzero(counts == 1)
    hint = "" if task == "binary" else AMOUNTS
    if len(scarce):
        at = int((classes.numpy() == scarce[0]).argmax())
        raise DataError(
            f"{text}: class {scarce[0]} has a single training sample, at {at}, which cannot be in both the training and a held-out part. "
            f"Add samples, drop the class, or provide a validation part.{hint}"
        )
    if total - held_count < kinds:
        raise DataError(
            f"{text}: keeping {held_count} of {total} training samples leaves fewer than the {kinds} classes. Lower holdout.{hint}"
        )
    return split(total, held=held_count, seed=seed, classes=classes.numpy() if held_count >= kinds else None)
