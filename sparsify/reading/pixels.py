"""Decodes an image to pixels: upright, on a white background if transparent, in RGB or grey."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from sparsify.errors import DataError, LoadWarning
from sparsify.untrusted import regular_size

MOST_PIXELS = 1 << 27
"""Largest number of pixels of an image, 400 MB when decoded; a file of a few kilobytes could require more."""
GREY = frozenset({"1", "L", "LA", "La"})
"""Pillow's modes without colour."""
Channels = Literal["auto", "rgb", "grey"]


def channels_of(wanted: Channels, sources: Iterable[io.BytesIO | Path]) -> int:
    """Return the number of channels: 3, or 1 for grey.

    Args:
        wanted: ``rgb``, ``grey``, or ``auto``, which is grey if all ``sources`` are, according to their headers.
        sources: encoded images. An image that cannot be read counts as coloured; it is refused when it is decoded.
    """
    if wanted != "auto":
        return {"rgb": 3, "grey": 1}[wanted]
    if not all(map(_is_grey, sources)):
        return 3
    warnings.warn(
        "all training images are grey and are read with one channel; channels = rgb reads three.",
        LoadWarning,
        stacklevel=3,
    )
    return 1


def _is_grey(source: io.BytesIO | Path) -> bool:
    try:
        if isinstance(source, Path):
            regular_size(source)
        with Image.open(source) as image:
            return image.mode in GREY
    except Exception:  # a damaged file; decoding it says what is wrong
        return False


def decoded(
    source: io.BytesIO | Path,
    where: str,
    size: tuple[int, int] | None = None,
    *,
    channels: int = 3,
    strict: bool = False,
) -> np.ndarray:
    """Decode an image, turn it by its EXIF orientation, and lay it on white if it is transparent.

    Args:
        source: an encoded image.
        where: beginning of messages.
        size: (height, width) to resize to; a much larger JPEG is first decoded at a fraction of its size.
        channels: 3 for RGB, 1 for grey (ITU-R 601 luma).
        strict: if ``channels`` is 1, refuse an image with colour.

    Returns:
        The pixels, uint8 [H, W, C].

    Raises:
        DataError: If the image cannot be decoded, is too large, has more than 8 bits per channel, or has colour that is not allowed.
    """
    try:
        if isinstance(source, Path):
            regular_size(source)
        with Image.open(source) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(
                    f"{where} has {image.width} x {image.height} pixels, more than {MOST_PIXELS:,}. Resize it."
                )
            if image.mode[:1] in {"I", "F"}:
                raise DataError(
                    f"{where} has {image.mode!r} pixels of more than 8 bits, which would be clipped. Store it with 8 bits per channel."
                )
            if channels == 1 and strict and image.mode not in GREY:
                raise DataError(
                    f"{where} has colour ({image.mode}), but the first training images are grey. Set channels = rgb to read all in "
                    f"colour, or channels = grey to make all grey."
                )
            if size is not None:
                image.draft(
                    None, (2 * max(size), 2 * max(size))
                )  # JPEGs only: decode at 1/2, 1/4 or 1/8, but at least this large
            pixels = _on_white(ImageOps.exif_transpose(image)).convert("L" if channels == 1 else "RGB")
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{where} cannot be decoded: {error}. Use JPEG, PNG or WebP, and leave damaged files out."
        ) from error
    if size is not None and pixels.size != (size[1], size[0]):
        pixels = pixels.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    array = np.asarray(pixels)
    return array[:, :, None] if channels == 1 else array


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    over = image.convert("RGBA")
    lowest = over.getchannel("A").getextrema()[0]
    if lowest == 255:
        return image
    warnings.warn("some images are transparent; they are laid on white.", LoadWarning, stacklevel=2)
    white = Image.new("RGBA", over.size, "white")
    return Image.alpha_composite(white, over)
