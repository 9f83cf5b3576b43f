"""Encoded images: resized, decoded once for all runs, and each unreadable one named."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from PIL import Image

from sparsify.errors import DataError
from sparsify.loading import load_data
from sparsify.loading.images import PIECE, decode_all
from tests.loading.test_data import IMAGES, LABELS, encoded, write_folder

pytestmark = pytest.mark.filterwarnings("ignore:all training images are grey")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sparsify"


def test_decoded_images_are_channels_first_and_come_from_the_cache_the_second_time(cache, monkeypatch):
    blob, offsets = encoded(IMAGES[:5])
    first = decode_all(blob, offsets, "five")
    assert first.shape == (5, 3, 8, 8)
    np.testing.assert_array_equal(first[:, 1], IMAGES[:5])
    monkeypatch.setattr("sparsify.loading.images.decoded", lambda *a, **k: pytest.fail("decoded again"))
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


def test_classes_of_a_folder_are_sorted_and_named(tmp_path):
    data = load_data(write_folder(tmp_path / "images"), seed=0)
    assert data.class_names == tuple(f"digit-{k}" for k in range(10))


def test_a_folder_is_normalised_only_where_asked_for(tmp_path):
    write_folder(tmp_path / "images")
    data = load_data(str(tmp_path / "images"), seed=0, normalise=False)
    x, y = data.test.batch(torch.tensor([0]))
    first = min((p for p in (tmp_path / "images" / "test" / f"digit-{int(y)}").iterdir()), key=str)
    torch.testing.assert_close(x[0, 0], torch.tensor(IMAGES[int(first.stem)]).float() / 255)


def sixteen_bits(folder):
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(folder / "train" / "digit-0" / "0.png")


BAD = {
    "no train": (lambda f: os.rename(f / "train", f / "training"), "has no folder train/"),
    "no test": (lambda f: os.rename(f / "test", f / "testing"), "has no test part"),
    "no classes": (lambda f: [os.rename(p, f / p.name) for p in (f / "train").iterdir()], "holds no folders"),
    "empty class": (lambda f: (f / "train" / "digit-x").mkdir(), "digit-x holds no images"),
    "no images": (lambda f: [p.rename(p.with_suffix(".txt")) for p in f.glob("train/*/*")], "holds no images"),
    "sixteen bits": (sixteen_bits, "would be clipped. Store it with 8 bits"),
    "cut short": (
        lambda f: (f / "train" / "digit-0" / "0.png").write_bytes((f / "train" / "digit-0" / "0.png").read_bytes()[:-40]),
        "0.png cannot be decoded",
    ),
    "a folder named like an image": (
        lambda f: (f / "train" / "digit-1" / "a.png").mkdir(), "a.png cannot be decoded",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_folders(tmp_path, name):
    damage, message = BAD[name]
    root = tmp_path / "images"
    write_folder(root)
    damage(root)
    with pytest.raises(DataError) as raised:
        data = load_data(str(root), seed=0)
        data.train.batch(torch.arange(len(data.train)))
        data.validation.batch(torch.arange(len(data.validation)))
    assert message in str(raised.value)


def test_files_that_are_hidden_or_no_images_are_no_samples(tmp_path):
    write_folder(tmp_path / "images")
    (tmp_path / "images" / "train" / "digit-0" / "._0.png").write_bytes(b"\x00")
    (tmp_path / "images" / "train" / "digit-0" / "notes.txt").write_text("mine")
    data = load_data(str(tmp_path / "images"), seed=0)
    assert len(data.train) + len(data.validation) == 120
    assert (
        torch.bincount(torch.cat([data.train.targets, data.validation.targets])).tolist()
        == np.bincount(LABELS[:120]).tolist()
    )
