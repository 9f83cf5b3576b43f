"""The data that scikit-learn brings: its digits with a fixed split, and patches of its two photographs."""

from __future__ import annotations

import numpy as np

from sparsify.errors import DataError
from sparsify.reading.arrays import Arrays

GRID = (20, 25)
"""Number of places, down and across, where patches are cut from each of the two photographs."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


def digits_arrays() -> Arrays:
    """Return scikit-learn's digits as bytes, with a fixed split."""
    from sklearn.datasets import (
        load_digits,
    )  # imported late: it takes a second, which commands without data need not spend

    images, target = load_digits(return_X_y=True)
    labels = np.asarray(target)
    pixels = (np.asarray(images).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    kept, held = split(len(labels), held=360, seed=0, classes=labels)
    return {"x_train": pixels[kept], "y_train": labels[kept], "x_test": pixels[held], "y_test": labels[held]}


def split(total: int, *, held: int, seed: int, classes: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Draw the rows that are kept and the rows that are held out, unsorted; stratified if ``classes``, int64 [N], are given."""
    from sklearn.model_selection import train_test_split

    rows = np.arange(total)
    kept, out = train_test_split(rows, test_size=held, random_state=seed, stratify=classes)
    return np.asarray(kept), np.asarray(out)


def grey(pixels: np.ndarray) -> np.ndarray:
    """Convert RGB bytes [N, 3, H, W] to grey bytes [N, 1, H, W]."""
    return np.rint(np.tensordot(pixels, LUMA, axes=([1], [0])))[:, None].astype(np.uint8)


def photos(channels: int, height: int, width: int) -> np.ndarray:
    """Cut patches [1000, C, H, W] at a grid of places; large patches overlap."""
    from sklearn.datasets import load_sample_images

    images = [np.asarray(image) for image in load_sample_images().images]
    if height > images[0].shape[0] or width > images[0].shape[1]:
        raise DataError(
            f"photos: the photographs have 427 x 640 pixels, but the training images have {height} x {width}. Give a folder of "
            f"images instead."
        )
    patches = [
        image[top : top + height, left : left + width].transpose(2, 0, 1)
        for image in images
        for top in np.linspace(0, image.shape[0] - height, GRID[0]).astype(int)
        for left in np.linspace(0, image.shape[1] - width, GRID[1]).astype(int)
    ]
    pixels = np.stack(patches)
    return grey(pixels) if channels == 1 else pixels
