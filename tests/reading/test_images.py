"""Images stored back to back are decoded once, into a cache."""

from __future__ import annotations

import numpy as np
import pytest

from sparsify.errors import DataError
from sparsify.reading.images import PIECE, decode_all
from tests.loading.test_data import IMAGES, encoded


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sparsify"


def test_decoded_images_are_channels_first_and_come_from_the_cache_the_second_time(cache, monkeypatch):
    blob, offsets = encoded(IMAGES[:5])
    first = decode_all(blob, offsets, "five")
    assert first.shape == (5, 3, 8, 8)
    np.testing.assert_array_equal(first[:, 1], IMAGES[:5])
    monkeypatch.setattr("sparsify.reading.images.decoded", lambda *a, **k: pytest.fail("decoded again"))
    second = decode_all(blob, offsets, "five")
    np.testing.assert_array_equal(second, first)
    before = [path.read_bytes() for path in cache.iterdir()]
    second[0] = 0  # a copy of the page, not of the file
    assert [path.read_bytes() for path in cache.iterdir()] == before


@pytest.mark.parametrize("damage", [lambda b: b[:50], lambda b: b[:-1], lambda b: b"", lambda b: b"x" + b[1:]])
def test_a_damaged_cache_is_rebuilt(cache, damage):
    blob, offsets = encoded(IMAGES[:5])
    expected = decode_all(blob, offsets, "five").copy()
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(damage(whole))
    np.testing.assert_array_equal(decode_all(blob, offsets, "five"), expected)
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    blob, offsets = encoded(IMAGES[:5])
    np.testing.assert_array_equal(decode_all(blob, offsets, "five")[:, 0], IMAGES[:5])


def test_another_size_is_another_entry_of_the_cache(cache):
    blob, offsets = encoded(IMAGES[:5])
    assert decode_all(blob, offsets, "five", size=4).shape == (5, 3, 4, 4)
    assert decode_all(blob, offsets, "five").shape == (5, 3, 8, 8)
    assert len(list(cache.iterdir())) == 2


def test_progress_is_reported(monkeypatch):
    monkeypatch.setenv("SPARSIFY_CACHE", "off")
    blob, offsets = encoded(IMAGES[:1500])
    seen: list[tuple[int, int]] = []
    decode_all(blob, offsets, "many", on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 1500), (PIECE, 1500), (1500, 1500)]


def test_images_of_other_sizes_are_named_or_resized():
    odd = [*IMAGES[:3], np.zeros((9, 7), np.uint8)]
    blob, offsets = encoded(odd)
    with pytest.raises(DataError, match=r"four: image 3 is 9 x 7 pixels, the first 8 x 8. Give image_size"):
        decode_all(blob, offsets, "four")
    assert decode_all(blob, offsets, "four", size=8).shape == (4, 3, 8, 8)
