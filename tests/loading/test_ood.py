"""Out-of-distribution inputs: every form, prepared as the training data were; what cannot be is refused with what to do."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from sparsify.errors import DataError
from sparsify.loading import load_data, load_ood
from tests.loading.test_data import IMAGES, LABELS, encoded, write_folder, write_npz

TURNED = np.ascontiguousarray(np.rot90(IMAGES[260:300], axes=(1, 2)))
PHOTO = np.asarray(load_sample_images().images[0])


def rows(samples):
    return samples.batch(torch.arange(len(samples)))[0]


@pytest.fixture
def data(tmp_path):
    return load_data(write_npz(tmp_path / "d.npz"), seed=0)


@pytest.fixture
def coloured(tmp_path):
    return load_data(write_folder(tmp_path / "train", colour="RGB"), seed=0)


@pytest.mark.parametrize("name", ["x", "x_test"])
def test_arrays_are_normalised_by_the_training_part(data, tmp_path, name):
    arrays: dict[str, Any] = {name: TURNED}
    np.savez(tmp_path / "o.npz", **arrays)
    mean, std = (IMAGES[:200] / 255).mean(), (IMAGES[:200] / 255).std()
    found = load_ood(str(tmp_path / "o.npz"), data)
    np.testing.assert_allclose(rows(found)[:, 0].numpy(), (TURNED / 255 - mean) / std, atol=1e-5)
    assert len(found) == 40 and found.fingerprint() == load_ood(str(tmp_path / "o.npz"), data).fingerprint()


def test_without_normalisation_bytes_are_in_unit_range(tmp_path):
    plain = load_data(write_npz(tmp_path / "d.npz"), seed=0, normalise=False)
    np.savez(tmp_path / "o.npz", x_test=TURNED)
    np.testing.assert_allclose(rows(load_ood(str(tmp_path / "o.npz"), plain))[:, 0].numpy(), TURNED / 255, atol=1e-6)


def test_the_test_part_of_a_labelled_set_is_taken(data, tmp_path):
    other = write_npz(tmp_path / "o.npz", x_test=TURNED, y_test=LABELS[:40])
    assert len(load_ood(other, data)) == 40


def test_encoded_images_are_resized_and_made_grey(data, tmp_path):
    blob, offsets = encoded([PHOTO[:32, :48], PHOTO[100:140, :40]])
    np.savez(tmp_path / "o.npz", images_test=blob, offsets_test=offsets)
    mean, std = data.statistics
    have = rows(load_ood(str(tmp_path / "o.npz"), data)) * std + mean
    small = Image.fromarray(PHOTO[:32, :48]).resize((8, 8), Image.Resampling.BILINEAR)
    grey = np.asarray(small) @ np.array([0.299, 0.587, 0.114])
    assert have.shape == (2, 1, 8, 8)
    np.testing.assert_allclose(have[0, 0].numpy() * 255, np.rint(grey), atol=1e-3)


@pytest.mark.parametrize("part", ["", "test", "test/cat"])
def test_a_folder_is_read_below_and_prepared_alike(coloured, tmp_path, part):
    folder = tmp_path / "o" / part
    folder.mkdir(parents=True)
    Image.fromarray(PHOTO[:30, :20]).save(folder / "a.png")
    Image.fromarray(PHOTO[:9, :9]).save(folder / "b.png")
    (folder / "notes.txt").write_text("no image")
    mean, std = coloured.statistics
    have = rows(load_ood(str(tmp_path / "o"), coloured)) * std.view(3, 1, 1) + mean.view(3, 1, 1)
    small = np.asarray(Image.fromarray(PHOTO[:30, :20]).resize((8, 8), Image.Resampling.BILINEAR))
    assert have.shape == (2, 3, 8, 8)
    np.testing.assert_allclose(have[0].permute(1, 2, 0).numpy() * 255, small, atol=1e-3)


def test_a_folder_and_an_archive_of_the_same_images_are_the_same_inputs(data, tmp_path):
    patches = [PHOTO[:8, :8], PHOTO[50:58, 60:68]]
    (tmp_path / "o").mkdir()
    for index, patch in enumerate(patches):
        Image.fromarray(patch).save(tmp_path / "o" / f"{index}.png")
    blob, offsets = encoded(patches)
    np.savez(tmp_path / "o.npz", images_test=blob, offsets_test=offsets)
    a, b = (rows(load_ood(str(tmp_path / name), data)) for name in ("o", "o.npz"))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_photos_are_patches_as_large_as_the_training_images(data, coloured):
    mean, std = coloured.statistics
    have = rows(load_ood("photos", coloured)) * std.view(3, 1, 1) + mean.view(3, 1, 1)
    assert have.shape == (1000, 3, 8, 8)
    np.testing.assert_allclose(have[0].permute(1, 2, 0).numpy() * 255, PHOTO[:8, :8], atol=1e-3)
    np.testing.assert_allclose(have[499].permute(1, 2, 0).numpy() * 255, PHOTO[-8:, -8:], atol=1e-3)
    assert rows(load_ood("photos", data)).shape == (1000, 1, 8, 8)


def test_digits_are_the_test_part(data):
    assert rows(load_ood("digits", data)).shape == (360, 1, 8, 8)


FACTORY = """
import numpy as np
x = np.random.default_rng(0).normal(size=(60, 5)).astype("float32")
def data():
    return (x, np.arange(60) % 3), (x[:9], np.arange(9) % 3)
def other():
    return x * 3, np.zeros(60, int)
def wrong():
    return x[:, :4], np.zeros(60, int)
"""


def test_a_factory_s_training_data_need_a_factory(tmp_path):
    (tmp_path / "f.py").write_text(FACTORY)
    trained = load_data(f"{tmp_path / 'f.py'}:data", seed=0)
    found = load_ood(f"{tmp_path / 'f.py'}:other", trained)
    assert rows(found).shape == (60, 5) and float(rows(found).std()) > 2
    with pytest.raises(DataError, match=r"inputs have shape \[4\], but those of the training data have \[5\]"):
        load_ood(f"{tmp_path / 'f.py'}:wrong", trained)
    with pytest.raises(DataError, match="must come from a factory that prepares them in the same way"):
        load_ood("photos", trained)


def test_features_beside_features(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    trained = load_data(
        write_npz(tmp_path / "d.npz", x_train=x, y_train=LABELS[:60], x_test=x, y_test=LABELS[:60]), seed=0
    )
    np.savez(tmp_path / "o.npz", x=x[:7] * 2)
    np.testing.assert_array_equal(rows(load_ood(str(tmp_path / "o.npz"), trained)).numpy(), x[:7] * 2)
    with pytest.raises(DataError, match=r"cannot take the shape \[5\]"):
        load_ood("photos", trained)


def save(arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no data file"),
        (b"text", "cannot be read as .npz"),
        (save({"images": TURNED}), "lacks x_test, x or images_test"),
        (
            save({"x": TURNED.astype(np.float32)}),
            "inputs are given as numbers, but those of the training data as bytes",
        ),
        (
            save({"x": np.zeros((3, 28, 28), np.uint8)}),
            r"shape \[1, 28, 28\], but those of the training data have \[1, 8, 8\]",
        ),
        (
            save({"x": np.zeros((3, 8, 8, 3), np.uint8)}),
            r"shape \[3, 8, 8\], but those of the training data have \[1, 8, 8\]",
        ),
        (save({"x": np.zeros((0, 8, 8), np.uint8)}), "is empty"),
        (save({"x": np.array(3)}), "is empty"),
        (save({"images_test": np.zeros(9, np.uint8), "offsets_test": np.array([0, 9])}), "cannot be decoded"),
    ],
)
def test_what_cannot_be_used_is_refused(data, tmp_path, content, message):
    if content is not None:
        (tmp_path / "o.npz").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_ood(str(tmp_path / "o.npz"), data)


def test_an_empty_folder_is_refused(data, tmp_path):
    (tmp_path / "o").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        load_ood(str(tmp_path / "o"), data)


def test_too_large_for_the_photographs(tmp_path):
    big = np.zeros((20, 430, 430), np.uint8)
    big[::2, 0] = 9
    trained = load_data(
        write_npz(tmp_path / "d.npz", x_train=big, y_train=np.arange(20) % 2, x_test=big, y_test=np.arange(20) % 2),
        seed=0,
    )
    with pytest.raises(DataError, match="427 x 640"):
        load_ood("photos", trained)
