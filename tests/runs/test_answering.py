"""Answers and pictures of test samples: what tasks have them, and the pixels as they were given."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from sparsify.loading import load_data
from sparsify.runs.answering import LONGEST_SIDE, pictures, scored
from sparsify.tasks import Binary, Classification, Regression


def opened(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


@pytest.fixture
def archive(tmp_path):
    """Writes images [N, H, W, C] as the parts of an archive, and loads it."""

    def load(images):
        labels = np.arange(len(images)) % 2
        parts = {
            f"{name}_{part}": value for part in ("train", "test") for name, value in (("x", images), ("y", labels))
        }
        np.savez(tmp_path / "data.npz", **parts)
        return load_data(f"{tmp_path}/data.npz", seed=0)

    return load


def test_bytes_come_back_as_they_were_given(archive):
    for channels in (1, 3):
        images = np.random.default_rng(0).integers(0, 256, (12, 6, 5, channels), dtype=np.uint8)
        found = pictures(archive(images), [7, 3])
        assert list(found) == ["7", "3"]
        assert np.array_equal(opened(found["3"]).reshape(6, 5, channels), images[3])


def test_numbers_are_scaled_over_the_samples_that_are_shown(archive):
    images = np.zeros((12, 1, 4, 4), dtype=np.float32)
    images[1], images[2], images[5] = -3.0, 1.0, 99.0
    data = archive(images)
    found = pictures(data, [0, 1, 2])
    assert [opened(found[key])[0, 0] for key in ("1", "0", "2")] == [0, 191, 255]


def test_large_images_are_made_smaller(archive):
    images = np.random.default_rng(0).integers(0, 256, (4, 100, 200, 3), dtype=np.uint8)
    assert opened(pictures(archive(images), [0])["0"]).shape == (LONGEST_SIDE // 2, LONGEST_SIDE, 3)


def test_other_inputs_have_no_pictures(archive):
    assert pictures(archive(np.random.default_rng(0).random((12, 5), dtype=np.float32)), [0]) == {}
    assert pictures(load_data("digits", seed=0), []) == {}


def test_scores_of_each_task():
    read = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    head = torch.tensor([[0.6, 0.4], [0.4, 0.6]])
    found = scored(Classification(), read, {"probabilities": head})
    assert found is not None and found[0] is read and torch.equal(found[1], head)
    yes = torch.tensor([[2.0], [-1.0]])
    found = scored(Binary(), yes, {})
    assert found is not None and torch.equal(found[0], torch.tensor([[0, 2.0], [0, -1]]))
    assert torch.allclose(found[1][:, 1], yes.flatten().sigmoid()) and torch.allclose(found[1].sum(1), torch.ones(2))
    found = scored(Binary(), yes, {"probabilities": torch.tensor([[0.7], [0.2]])})
    assert found is not None and torch.allclose(found[1], torch.tensor([[0.3, 0.7], [0.8, 0.2]]))
    assert scored(Regression(), yes, {}) is None
    assert scored(Binary(), yes * torch.nan, {}) is None
