"""Noise, blur and brightness: by hand, and as scipy blurs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from sparsify.errors import EvaluationError
from sparsify.reading.digits import digits_arrays, photos
from sparsify.reading.shifts import BLUR, BRIGHTNESS, KINDS, NOISE, SEVERITIES, blurring, not_images, shifted, told

PHOTOS = photos(3, 40, 32)


def test_brightness_by_hand():
    pixels = np.array([0, 100, 255], np.uint8).reshape(1, 1, 1, 3).repeat(2, 2)
    assert shifted(pixels, "brightness", 1)[0, 0, 0].tolist() == [26, 126, 255]  # 25.5 is rounded to even
    found = shifted(np.array([0.0, 0.25, 0.9]).reshape(1, 1, 1, 3).repeat(2, 2), "brightness", 5)
    assert found.dtype == np.float64 and found[0, 0, 1].tolist() == [0.5, 0.75, 1.0]


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_its_deviation_and_the_same_draws_at_every_severity(severity):
    grey = np.full((300, 3, 8, 8), 0.5, np.float32)
    found = shifted(grey, "noise", severity) - 0.5
    inside = np.abs(found) < 0.49
    draws = found / NOISE[severity - 1]
    if severity <= 3:  # hardly anything is limited to [0, 1]
        assert draws.std() == pytest.approx(1, abs=0.01) and draws.mean() == pytest.approx(0, abs=0.01)
    first = (shifted(grey, "noise", 1) - 0.5) / NOISE[0]
    assert np.allclose(draws[inside], first[inside], atol=1e-3)
    assert np.array_equal(shifted(grey[:7], "noise", severity), shifted(grey, "noise", severity)[:7])
    assert np.array_equal(shifted(grey[256:], "noise", severity, piece=1), shifted(grey, "noise", severity)[256:])
    assert not np.array_equal(shifted(grey, "noise", severity, seed=1), shifted(grey, "noise", severity))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_blur_is_that_of_scipy(severity):
    pixels, deviation = PHOTOS[:4].astype(np.float32) / 255, BLUR[severity - 1] * 32
    want = pixels
    for axis in (2, 3):
        want = gaussian_filter1d(want, deviation, axis=axis, mode="reflect", radius=int(np.ceil(4 * deviation)))
    assert np.allclose(shifted(pixels, "blur", severity), want, atol=1e-5)
    assert np.array_equal(shifted(PHOTOS[:4], "blur", severity), np.rint(shifted(pixels, "blur", severity) * 255))


def test_a_blur_that_is_wider_than_the_image_keeps_its_mean():
    matrix = blurring(3, 5.0)
    assert np.allclose(matrix.sum(1), 1) and np.allclose(matrix, 1 / 3, atol=0.01)
    assert np.allclose(blurring(4, 0.01), np.eye(4))


@pytest.mark.parametrize("kind", KINDS)
def test_higher_severities_change_more_and_leave_the_images_alone(kind):
    before = PHOTOS.copy()
    off = [np.abs(shifted(PHOTOS, kind, one).astype(float) - PHOTOS).mean() for one in SEVERITIES]
    assert off == sorted({*off}) and off[0] > 0.1 and np.array_equal(before, PHOTOS)


def test_what_is_no_image_is_told():
    assert not_images(digits_arrays()["x_test"][:, None]) is None
    assert not_images(np.zeros((5, 64), np.uint8)) == "they have shape [N, 64]"
    assert not_images(np.zeros((5, 1, 8, 8), np.int64)) == "they are int64"
    assert not_images(np.full((5, 1, 8, 8), -0.5)) == "they are numbers from -0.5 to -0.5, no pixels in [0, 1]"
    assert not_images(np.full((5, 1, 8, 8), np.nan)) is not None
    with pytest.raises(EvaluationError, match=r"needs images \[N, C, H, W\].*they have shape \[N, 64\]"):
        shifted(np.zeros((5, 64), np.uint8), "noise", 1)
    for kind, severity in (("fog", 1), ("noise", 0), ("noise", 6)):
        with pytest.raises(EvaluationError, match="noise, blur, brightness of severity 1 to 5, found"):
            shifted(PHOTOS, kind, severity)


def test_all_constants_are_told():
    assert all(f"{value:g}" in told() for value in (*NOISE, *BRIGHTNESS)) and "1, 2, 3, 4, 6 %" in told()
    assert all(f"c = {', '.join(map(str, values))}" in str(shifted.__doc__) for values in (NOISE, BLUR, BRIGHTNESS))
