"""Reads out-of-distribution inputs as arrays of the shape that a model takes; labels are not read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparsify.errors import DataError
from sparsify.reading.arrays import read_arrays
from sparsify.reading.digits import digits_arrays, grey, photos
from sparsify.reading.images import Progress, decode_all


def short_names(texts: Sequence[str]) -> dict[str, str]:
    """Return short names of sets with their texts: the file name without its ending, or the whole texts if these are not unique."""
    short = [Path(text).stem if Path(text).exists() else text.rpartition(":")[2] for text in texts]
    unique = len({*short}) == len(short)
    return dict(zip(short if unique else texts, texts, strict=True))


def ood_array(text: str, shape: tuple[int, ...], on_progress: Progress | None = None) -> np.ndarray:
    """Read inputs by name: ``file.npz`` with ``x_test`` or ``x``, or ``images_test`` and ``offsets_test``; ``photos``; or ``digits``.

    Args:
        text: which inputs to read.
        shape: of one input of the model, without the batch: encoded images and photographs take its size, and its number of channels.
        on_progress: called while encoded images are decoded.

    Returns:
        The array as it is stored, or bytes [N, C, H, W] of images.

    Raises:
        DataError: If the file is missing or damaged, lacks inputs, or images cannot take the shape.
    """
    if text == "digits":
        return digits_arrays()["x_test"]
    if text == "photos":
        return photos(*image_shape(text, shape))
    if not Path(text).is_file():
        raise DataError(
            f"there is no data file {text}. Give an .npz file, a folder of images, file.py:factory, photos or digits."
        )
    try:
        held = read_arrays(Path(text))
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{text} cannot be read as .npz without unpickling ({type(error).__name__}: {error}). Save plain arrays with numpy.savez."
        ) from error
    if {"images_test", "offsets_test"} <= held.keys():
        channels, *size = image_shape(text, shape)
        pixels = decode_all(
            held["images_test"],
            held["offsets_test"],
            f"{text}, images_test",
            size=(size[0], size[1]),
            on_progress=on_progress,
        )
        return grey(pixels) if channels == 1 else pixels
    for name in ("x_test", "x"):
        if name in held:
            return held[name]
    raise DataError(
        f"{text} lacks x_test, x or images_test with offsets_test; it holds {', '.join(sorted(held)) or 'nothing'}."
    )


def image_shape(text: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return channels, height and width of the images that a model takes.

    Raises:
        DataError: If they are not grey or RGB images.
    """
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise DataError(
            f"{text}: images cannot take the shape {list(shape)} of the model's inputs. Give arrays of that shape."
        )
    return shape[0], shape[1], shape[2]
