"""Datasets of the user's: what is odd about one is said with the index of the sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from sparsify.errors import DataError
from sparsify.loading import load_data
from sparsify.loading.datasets import DatasetSamples
from tests.loading.test_data import IMAGES, LABELS, Noisy


class Listed(Dataset):
    """Items from a list; no labels beside them."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        if isinstance(self.items[index], Exception):
            raise self.items[index]
        return self.items[index]


def item(label: Any = 0, shape=(4,)):
    return torch.ones(shape), label


BAD = {
    "an item that fails": ([item(), item(), OSError("disk")], "reading sample 2 failed: OSError: disk"),
    "an item of three": ([item(), (1, 2, 3)], r"sample 1 should be \(input, label\), found tuple of int, int, int"),
    "text for a label": ([item(), item("cat")], "whole numbers from 0, found <U"),
    "a label below 0": ([item(), item(-2)], "found -2 at sample 1"),
    "vectors for labels": ([item(np.array([0, 1])), item(np.array([1, 0]))], "one class per sample"),
    "labels of unlike shapes": ([item(), item(np.array([1, 0]))], "labels are not numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_items(name):
    items, message = BAD[name]
    with pytest.raises(DataError, match=message):
        DatasetSamples(Listed(items), "mine", task="classification")


def test_inputs_of_unlike_shapes():
    samples = DatasetSamples(Listed([item(), item(), item(shape=(5,))]), "mine")
    with pytest.raises(DataError, match=r"mine: the input of sample 2 is \[5\], but that of sample 1 is \[4\]"):
        samples.batch(torch.tensor([1, 2]))


def test_a_collate_that_drops_samples():
    samples = DatasetSamples(Listed([item(0), item(1)]), "mine", collate=lambda xs: (torch.ones(1, 4), torch.zeros(1)))
    with pytest.raises(DataError, match="a batch of 2 should have"):
        samples.batch(torch.tensor([0, 1]))


def test_labels_that_change():
    items = [item(0), item(1)]
    samples = DatasetSamples(Listed(items), "mine")
    items[1] = item(0)
    with pytest.raises(DataError, match="sample 1 has label 0, but had 1 when it was first read"):
        samples.batch(torch.tensor([0, 1]))


def test_labels_are_read_without_the_inputs_where_the_dataset_keeps_them():
    class Sealed(Noisy):
        def __getitem__(self, index):
            pytest.fail("an input was read")

    assert DatasetSamples(Sealed(0, 30), "mine").targets.tolist() == LABELS[:30].tolist()
    assert DatasetSamples(Subset(Sealed(0, 30), [5, 3]), "mine").targets.tolist() == LABELS[[5, 3]].tolist()


def test_a_transform_of_labels_is_applied_to_those_too():
    class Parity(Noisy):
        target_transform = True

        def __getitem__(self, index):
            inputs, label = super().__getitem__(index)
            return inputs, label % 2

    samples = DatasetSamples(Parity(0, 10), "mine")
    assert samples.batch(torch.arange(10))[1].tolist() == samples.targets.tolist() == (LABELS[:10] % 2).tolist()


def test_bytes_are_scaled_and_tokens_stay_whole():
    pixels = DatasetSamples(TensorDataset(torch.tensor(IMAGES[:5]), torch.tensor(LABELS[:5])), "pixels")
    torch.testing.assert_close(pixels.batch(torch.tensor([2]))[0], torch.tensor(IMAGES[2:3]).float() / 255)
    tokens = DatasetSamples(TensorDataset(torch.arange(20).view(5, 4), torch.tensor(LABELS[:5])), "tokens")
    assert tokens.batch(torch.tensor([1]))[0].tolist() == [[4, 5, 6, 7]]
    assert tokens.batch(torch.tensor([1]))[0].dtype is torch.int64


def test_bytes_of_several_inputs_are_pixels_only_where_they_are_images():
    rows = [
        {"image": torch.tensor(i), "seen": torch.tensor(i[0] > 99).byte(), "label": int(y)}
        for i, y in zip(IMAGES[:6], LABELS[:6], strict=True)
    ]
    with pytest.raises(DataError, match=r"rows: input 'seen' holds bytes \(uint8\) \[N, 8\]"):
        DatasetSamples(rows, "rows").batch(torch.tensor([1, 2]))
    inputs = (
        DatasetSamples([row | {"seen": row["seen"].bool()} for row in rows], "rows").batch(torch.tensor([1])).inputs
    )
    torch.testing.assert_close(inputs["image"][0], torch.tensor(IMAGES[1]).float() / 255)
    assert inputs["seen"].tolist() == (IMAGES[1:2, 0] > 99).tolist()


SEQUENCES = """
import numpy as np
def data():
    x = np.random.default_rng(0).normal(size=(60, 5, 3)); y = np.arange(60) % 3
    return {"train": (x[:40], y[:40]), "test": (x[40:], y[40:])}
def tokens():
    x = np.arange(600).reshape(60, 10); y = np.arange(60) % 3
    return (x[:40], y[:40]), (x[40:], y[40:])
"""


def test_arrays_of_any_shape_come_from_a_factory_as_they_are(tmp_path):
    (tmp_path / "sequences.py").write_text(SEQUENCES)
    x, _ = load_data(f"{tmp_path / 'sequences.py'}:data", seed=0).test.batch(torch.arange(2))
    assert x.shape == (2, 5, 3) and x.dtype is torch.float32
    x, _ = load_data(f"{tmp_path / 'sequences.py'}:tokens", seed=0).test.batch(torch.arange(2))
    assert x.dtype is torch.int64 and x[0, 0] == 400
