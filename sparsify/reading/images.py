"""Decodes images that are stored back to back once, into a cache."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL

from sparsify.errors import DataError
from sparsify.reading.pixels import Channels, channels_of, decoded

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
PIECE = 1024
DECODING = 2
"""Version of the decoder `sparsify.reading.pixels`; caches of other versions are not read."""
MEASURED = 2000
"""Number of training images that say whether all are grey, and of a folder, from which mean and standard deviation are computed."""
Progress = Callable[[int, int], None]
"""Called while images are decoded, with the number of decoded images and of all images."""


def decode_all(
    blob: np.ndarray,
    offsets: np.ndarray,
    where: str,
    *,
    size: int | tuple[int, int] | None = None,
    channels: Channels = "rgb",
    on_progress: Progress | None = None,
) -> np.ndarray:
    """Decode images stored back to back.

    Args:
        blob: uint8, all files one after another.
        offsets: int [N + 1], the position where each file begins, and the end of the last.
        where: beginning of messages.
        size: side in pixels, or (height, width), to resize to; None: all images must have the same size.
        channels: ``rgb``, ``grey``, or ``auto``, which is grey if the first `MEASURED` images all are.
        on_progress: called before each `PIECE` images, and at the end.

    Returns:
        uint8 [N, C, H, W], where C is 3 or 1. The array is stored in the cache folder and mapped from there, so that the next run starts
        at once; ``SPARSIFY_CACHE=off`` stores nothing.

    Raises:
        DataError: If an image cannot be decoded, or the sizes differ.
    """
    if blob.dtype != np.uint8 or blob.ndim != 1 or offsets.ndim != 1 or not np.issubdtype(offsets.dtype, np.integer):
        raise DataError(
            f"{where}: encoded images should be uint8 bytes [B] and integer offsets [N + 1], found {blob.dtype} {list(blob.shape)} and "
            f"{offsets.dtype} {list(offsets.shape)}."
        )
    if len(offsets) < 2 or offsets[0] < 0 or offsets[-1] > len(blob) or (np.diff(offsets.astype(np.int64)) <= 0).any():
        raise DataError(
            f"{where}: offsets should increase strictly from 0 to {len(blob)}, the number of bytes: the start of each image, "
            f"and the end of the last."
        )
    count = len(offsets) - 1

    def source(index: int) -> io.BytesIO:
        return io.BytesIO(blob[offsets[index] : offsets[index + 1]].tobytes())

    planes = channels_of(channels, map(source, range(min(count, MEASURED))))
    cached = _cache_file(blob, offsets, size, planes)
    images = _mapped(cached, count, planes) if cached is not None else None
    if images is not None:
        return images

    def decode(index: int) -> np.ndarray:
        wanted = (size, size) if isinstance(size, int) else size
        return decoded(source(index), f"{where}: image {index}", wanted, channels=planes, strict=channels == "auto")

    first = decode(0)
    images = np.empty((count, planes, *first.shape[:2]), np.uint8)
    with ThreadPoolExecutor() as pool:
        for start in range(0, count, PIECE):  # in pieces, so that only one piece at a time is in memory twice
            if on_progress:
                on_progress(start, count)
            for index, image in enumerate(pool.map(decode, range(start, min(start + PIECE, count))), start):
                if image.shape != first.shape:
                    raise DataError(
                        f"{where}: image {index} is {sized(image)} pixels, the first {sized(first)}. Give image_size to resize them."
                    )
                images[index] = image.transpose(2, 0, 1)
    if on_progress:
        on_progress(count, count)
    if cached is None:
        return images
    try:
        _keep(cached, images)
    except OSError:
        return images  # without a cache, only the next run takes longer
    kept = _mapped(cached, count, planes)
    return images if kept is None else kept


def _keep(path: Path, images: np.ndarray) -> None:
    """Write an array to a file, completely or not at all, without copying it in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, images)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _mapped(path: Path, count: int, channels: int) -> np.ndarray | None:
    """Map the ``count`` images of a cache file into memory; None if the file is missing or damaged."""
    try:
        images = np.load(path, mmap_mode="c", allow_pickle=False)  # writing to the array never changes the file
    except (OSError, ValueError, EOFError):
        return None
    whole = images.dtype == np.uint8 and images.ndim == 4 and images.shape[:2] == (count, channels)
    return images if whole else None


def sized(image: np.ndarray) -> str:
    return f"{image.shape[0]} x {image.shape[1]}"


def _cache_file(
    blob: np.ndarray, offsets: np.ndarray, size: int | tuple[int, int] | None, channels: int
) -> Path | None:
    if os.environ.get("SPARSIFY_CACHE") == "off":
        return None
    digest = hashlib.sha256(np.ascontiguousarray(blob).data)
    digest.update(offsets.astype(np.int64).tobytes())
    digest.update(f"{size} {channels} {DECODING} {PIL.__version__}".encode())
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # the user has no home folder
        return None
    return home / "sparsify" / f"images-{digest.hexdigest()}.npy"
