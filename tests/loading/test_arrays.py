"""What is wrong with an array is said with where: which array, which sample, what to do."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import torch

from sparsify.errors import DataError
from sparsify.loading import load_data
from sparsify.loading.arrays import channel_statistics
from sparsify.reading.arrays import read_npz
from tests.loading.test_data import IMAGES, LABELS, encoded, write_npz

pytestmark = pytest.mark.filterwarnings("ignore:all training images are grey")


def with_value(value, at):
    x = IMAGES[:200].astype(np.float32)
    x[at] = value
    return x


PNG, OFFSETS = encoded(IMAGES[:200])
BAD = {
    "nan": ({"x_train": with_value(np.nan, (7, 2, 5))}, "first in sample 7: x_train[7, 2, 5] is nan"),
    "infinity": ({"x_train": with_value(-np.inf, (199, 0, 0))}, "first in sample 199: x_train[199, 0, 0] is -inf"),
    "negative label": ({"y_train": np.where(np.arange(200) == 3, -1, LABELS[:200])}, "found -1 at sample 3"),
    "huge label": ({"y_train": np.where(np.arange(200) == 5, 2**40, LABELS[:200])}, "to 1048576, found 1099511627776 at sample 5"),
    "unsigned label past int64": ({"y_train": np.full(200, 2**63, np.uint64)}, "at sample 0"),
    "float labels": ({"y_train": LABELS[:200] / 2}, "found float64. These look like the targets of a regression"),
    "bool labels": ({"y_train": LABELS[:200] > 4}, "found bool"),
    "one-hot labels": ({"y_train": np.eye(10, dtype=int)[LABELS[:200]]}, "found shape [200, 10]. These are one-hot: use y.argmax(1)"),
    "column of labels": ({"y_train": LABELS[:200, None]}, "found shape [200, 1]. Use y.ravel()"),
    "lengths": ({"y_train": LABELS[:199]}, "x_train has 200 samples, y_train has 199"),
    "whole floats": ({"y_train": LABELS[:200].astype(float)}, "All are whole, so y.astype('int64') keeps them"),
    "words": ({"y_train": LABELS[:200].astype(str)}, "Number the classes from 0: numpy.unique"),
    "several labels": ({"y_train": (IMAGES[:200, 0] > 3).astype(int)}, "several labels per sample: set the task to 'multilabel'"),
    "bytes, then floats": (
        {"x_test": IMAGES[200:300].astype(float), "y_test": LABELS[200:300]}, "x_train has dtype torch.uint8, but x_test has torch.float32",
    ),
    "floats, then bytes": (
        {"x_train": IMAGES[:200] / 255, "x_test": IMAGES[200:300], "y_test": LABELS[200:300]}, "which would be scaled differently",
    ),
    "two scales": (
        {"x_train": IMAGES[:200] / 255, "x_test": IMAGES[200:300] * 1.0, "y_test": LABELS[200:300]}, "only one of them is in [0, 1]",
    ),
    "beyond float32": ({"x_train": IMAGES[:200] * 1e300}, "numbers beyond float32 (3.4e38), first in sample 0"),
    "complex": ({"x_train": IMAGES[:200].astype(np.complex64)}, "has dtype complex64"),
    "dates": ({"x_train": np.zeros((200, 8, 8), "datetime64[s]")}, "has dtype datetime64[s]"),
    "a single number": ({"x_train": np.float32(3)}, "x_train is empty"),
    "flat bytes": ({"x_train": IMAGES[:200].reshape(200, 64)}, "x_train has shape [200, 64]"),
    "one sample of a class": (
        {"x_train": IMAGES[:21], "y_train": np.r_[np.arange(20) % 10, 10]}, "amounts and no classes, set the task to 'regression'",
    ),
    "one class": ({"y_train": np.full(200, 3), "y_test": np.full(60, 3)}, "all training labels are 3"),
    "no labels of a part": ({"y_validation": LABELS[:5]}, "lacks x_validation"),
    "class names": ({"class_names": np.array(["a", "b"])}, "2 class_names for 10 classes"),
    "torn image": (
        {"x_train": None, "images_train": np.r_[PNG[:-70], np.zeros(70, np.uint8)], "offsets_train": OFFSETS},
        "images_train: image 199 cannot be decoded",
    ),
    "image cut short": (
        {"x_train": None, "images_train": PNG, "offsets_train": np.r_[OFFSETS[:5], OFFSETS[5] - 40, OFFSETS[6:]]},
        "images_train: image 4 cannot be decoded",
    ),
    "offsets past the end": ({"x_train": None, "images_train": PNG[:-1], "offsets_train": OFFSETS}, "offsets should increase"),
    "offsets of floats": ({"x_train": None, "images_train": PNG, "offsets_train": OFFSETS / 1}, "found uint8"),
    "images of int64": ({"x_train": None, "images_train": PNG.astype(int), "offsets_train": OFFSETS}, "found int64"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_arrays(tmp_path, monkeypatch, name):
    monkeypatch.setenv("SPARSIFY_CACHE", "off")
    changes, message = BAD[name]
    path = write_npz(tmp_path / "d.npz", **changes)
    with pytest.raises(DataError) as raised:
        load_data(path, seed=0, task="classification")
    assert message in str(raised.value)
    assert path in str(raised.value)


def test_pickled_objects_are_not_unpickled(tmp_path):
    path = write_npz(tmp_path / "d.npz", x_train=np.array([{"a": 1}] * 200, dtype=object))
    with pytest.raises(DataError, match="without unpickling"):
        load_data(path, seed=0)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"hello"])
def test_files_that_are_no_npz(tmp_path, content):
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"d\.npz cannot be read as \.npz"):
        load_data(str(tmp_path / "d.npz"), seed=0)


def test_a_test_part_is_held_out_only_where_asked_for(tmp_path):
    path = write_npz(tmp_path / "d.npz", x_test=None, y_test=None)
    with pytest.raises(DataError, match=r"has no test part.*test_holdout = 0.15"):
        load_data(path, seed=0)
    first, other = (load_data(path, seed=seed, test_holdout=0.2) for seed in (0, 1))
    assert [len(part) for part in (first.train, first.validation, first.test)] == [136, 24, 40]
    rows = torch.arange(40)
    assert torch.equal(first.test.batch(rows)[0], other.test.batch(rows)[0]), "whatever the seed"
    assert first.validation.fingerprint() != other.validation.fingerprint()
    with pytest.raises(DataError, match="already has a test part"):
        load_data(write_npz(tmp_path / "e.npz"), seed=0, test_holdout=0.2)


def test_fewer_training_samples_are_drawn_of_each_class_by_the_seed(tmp_path):
    path = write_npz(tmp_path / "d.npz")
    first, again, other = (load_data(path, seed=seed, train_samples=100, holdout=0.2) for seed in (0, 0, 1))
    assert (len(first.train), len(first.validation)) == (80, 20)
    assert len(first.test) == len(load_data(path, seed=0).test)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    counts = [int((part.targets == 3).sum()) for part in (first.train, first.validation)]
    whole = load_data(path, seed=0)
    everything = len(whole.train) + len(whole.validation)
    of_class = sum(int((part.targets == 3).sum()) for part in (whole.train, whole.validation))
    assert abs(sum(counts) - 100 * of_class / everything) <= 1
    for count, message in ((everything, "has 200 training samples"), (10, "between 20"), (195, "between 20")):
        with pytest.raises(DataError, match=message):
            load_data(path, seed=0, train_samples=count)


def test_names_of_classes_are_kept(tmp_path):
    names = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
    assert load_data(write_npz(tmp_path / "d.npz", class_names=names), seed=0).class_names == tuple(names)
    assert load_data("digits", seed=0).class_names is None


def test_images_are_left_as_they_are_where_asked_for(tmp_path):
    data = load_data(write_npz(tmp_path / "d.npz"), seed=0, normalise=False)
    x = data.test.batch(torch.tensor([2]))[0]
    torch.testing.assert_close(x[0, 0], torch.tensor(IMAGES[202]).float() / 255, rtol=0, atol=0)


def test_an_image_size_that_would_be_ignored_is_refused(tmp_path):
    for text in ("digits", write_npz(tmp_path / "d.npz"), "math:sqrt"):
        with pytest.raises(DataError, match="image_size"):
            load_data(text, seed=0, image_size=16)


def test_statistics_of_bytes_by_hand_and_of_floats_are_the_same():
    pixels = torch.tensor([[[[0, 255]], [[51, 51]]], [[[0, 255]], [[51, 51]]]], dtype=torch.uint8)  # [2, 2, 1, 2]
    for x in (pixels, pixels.float() / 255):
        mean, std = channel_statistics(x)
        torch.testing.assert_close(mean, torch.tensor([0.5, 0.2]))
        torch.testing.assert_close(std, torch.tensor([0.5, 1e-6]))


def test_a_member_that_is_no_array_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=np.zeros((4, 2)))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("y_train", b"0101")
    with pytest.raises(DataError, match="holds 'y_train', which is not an array"):
        read_npz(tmp_path / "a.npz")
