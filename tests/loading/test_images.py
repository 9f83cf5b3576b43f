"""Encoded images: resized, decoded once for all runs, and each unreadable one named."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from PIL import Image

from sparsify.errors import DataError
from sparsify.loading import load_data
from tests.loading.test_data import IMAGES, LABELS, write_folder

pytestmark = pytest.mark.filterwarnings("ignore:all training images are grey")


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
