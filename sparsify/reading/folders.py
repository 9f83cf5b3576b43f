"""Reads folders of images, ``<part>/<class>/*``."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from sparsify.errors import DataError
from sparsify.reading.arrays import Arrays, free_memory
from sparsify.reading.images import MEASURED, PIECE, SUFFIXES, Progress, sized
from sparsify.reading.pixels import Channels, channels_of, decoded

FOLDERS = {"train": "train", "validation": "val", "test": "test"}
"""Name of the folder of each part."""


def read_folder_part(
    folder: Path,
    part: str,
    *,
    classes: Sequence[str] | None = None,
    size: int | None = None,
    channels: Channels = "auto",
    on_progress: Progress | None = None,
) -> Arrays:
    """Return ``x_<part>``, uint8 [N, C, H, W], ``y_<part>``, int64 [N], and ``class_names`` of one part; other parts are not decoded.

    Args:
        folder: folder of the parts.
        part: ``train``, ``validation`` or ``test``.
        classes: names of the classes, for a folder without ``train/``; None: the folders of the part.
        size: side in pixels to which images are resized; None: all images must have the same size.
        channels: ``rgb``, ``grey``, or ``auto``, which is grey if the first `MEASURED` images of this part all are.
        on_progress: called while images are decoded, with the number of decoded images and of all images.

    Raises:
        DataError: If the part, its classes or its images are missing, an image cannot be read, or the sizes differ.
    """
    own = folder / FOLDERS[part]
    if not own.is_dir():
        raise DataError(f"{folder} has no folder {own.name}/. Its images belong in {own.name}/<class>/.")
    if (folder / "train").is_dir():
        classes = class_folders(folder / "train")
    elif classes is None:
        classes = class_folders(own)
    paths, labels = listed(own, classes, empty=False)
    planes = channels_of(channels, paths[:MEASURED])

    def decode(path: Path) -> np.ndarray:
        wanted = None if size is None else (size, size)
        return decoded(path, str(path), wanted, channels=planes, strict=channels == "auto")

    first = decode(paths[0])
    if (needed := len(paths) * first.size) > free_memory():
        raise DataError(f"{own} needs {needed:,} bytes of memory when decoded, and less is free. Give image_size.")
    images = np.empty((len(paths), planes, *first.shape[:2]), np.uint8)
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), PIECE):
            if on_progress:
                on_progress(start, len(paths))
            piece = paths[start : start + PIECE]
            for index, image in enumerate(pool.map(decode, piece), start):
                if image.shape != first.shape:
                    raise DataError(
                        f"{paths[index]} is {sized(image)} pixels, the first image {sized(first)}. Give image_size to resize them."
                    )
                images[index] = image.transpose(2, 0, 1)
    if on_progress:
        on_progress(len(paths), len(paths))
    return {f"x_{part}": images, f"y_{part}": np.array(labels, np.int64), "class_names": np.array(classes)}


def class_folders(folder: Path) -> list[str]:
    """Return the classes of a part, the sorted names of its folders.

    Raises:
        DataError: If there are none, or a name is not printable text.
    """
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if not classes:
        raise DataError(f"{folder} holds no folders; every class is a folder of images.")
    if strange := [name for name in classes if not name.isprintable()]:
        raise DataError(
            f"{folder} has a folder whose name is not printable text: {strange[0]!r}. Rename it; it names a class."
        )
    return classes


def listed(folder: Path, classes: Sequence[str], *, empty: bool) -> tuple[list[Path], list[int]]:
    """List files and labels of one part; if ``empty`` is True, a class without images is refused.

    Raises:
        DataError: If there is another class, or there are no images.
    """
    extra = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in classes)
    if extra:
        raise DataError(f"{folder} has the class {extra[0]!r}, which never occurs in training: {', '.join(classes)}.")
    found = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).glob("*"))
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    where = "they belong in {} and end in " + ", ".join(sorted(SUFFIXES))
    if not found:
        raise DataError(f"{folder} holds no images; {where.format(folder / '<class>')}.")
    if empty and (bare := [name for label, name in enumerate(classes) if label not in {label for _, label in found}]):
        raise DataError(
            f"the class {folder / bare[0]} holds no images; {where.format('it')}. Leave an empty class out."
        )
    return [path for path, _ in found], [label for _, label in found]
