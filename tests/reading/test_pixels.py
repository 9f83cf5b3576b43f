"""One image as pixels: turned upright, laid on white where it is transparent, grey or RGB; JPEGs decoded small where they are resized."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from sparsify.errors import DataError, LoadWarning
from sparsify.reading.pixels import channels_of, decoded

PHOTO = Image.fromarray(load_sample_image("china.jpg"))


def stored(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return io.BytesIO(buffer.getvalue())


# Where the first row and the first column of the stored pixels are in the scene, by the EXIF standard, as a change of the array.
UPRIGHT = {
    1: lambda stored: stored,  # top, left
    2: lambda stored: stored[:, ::-1],  # top, right
    3: lambda stored: stored[::-1, ::-1],  # bottom, right
    4: lambda stored: stored[::-1],  # bottom, left
    5: lambda stored: stored.transpose(1, 0, 2),  # left, top
    6: lambda stored: stored.transpose(1, 0, 2)[:, ::-1],  # right, top
    7: lambda stored: stored.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
    8: lambda stored: stored.transpose(1, 0, 2)[::-1],  # left, bottom
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_photographs_are_turned_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    small = PHOTO.resize((16, 8))
    upright = UPRIGHT[orientation](np.asarray(small))
    np.testing.assert_array_equal(decoded(stored(small, exif=exif), "x"), upright)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white_and_it_is_said(mode):
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 255))
    image.putpixel((1, 2), (0, 0, 0, 0))
    image = image.convert("LA") if mode == "LA" else image.quantize(4) if mode == "P" else image
    with pytest.warns(LoadWarning, match="laid on white"):
        pixels = decoded(stored(image), "x")
    assert pixels[2, 1].tolist() == [255, 255, 255] and pixels[0, 0].tolist() != [255, 255, 255]


def test_an_alpha_that_hides_nothing_is_dropped():
    np.testing.assert_array_equal(
        decoded(stored(PHOTO.resize((6, 4)).convert("RGBA")), "x"), np.asarray(PHOTO.resize((6, 4)))
    )


def test_grey_is_grey():
    grey = PHOTO.resize((6, 4)).convert("L")
    with pytest.warns(LoadWarning, match="read with one channel"):
        assert channels_of("auto", [stored(grey), stored(grey.convert("1"))]) == 1
    assert channels_of("auto", [stored(grey), stored(PHOTO.resize((6, 4)))]) == 3
    assert channels_of("rgb", [stored(grey)]) == 3
    np.testing.assert_array_equal(decoded(stored(grey), "x", channels=1)[:, :, 0], np.asarray(grey))
    with pytest.raises(DataError, match="has colour"):
        decoded(stored(PHOTO.resize((6, 4))), "x", channels=1, strict=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpegs_much_larger_than_wanted_look_the_same(channels):
    whole = decoded(stored(PHOTO, "PNG"), "x", (50, 50), channels=channels)
    small = decoded(stored(PHOTO, "JPEG", quality=95), "x", (50, 50), channels=channels)
    assert small.shape == (50, 50, channels)
    assert np.abs(whole.astype(int) - small).mean() < 4
