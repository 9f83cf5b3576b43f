"""Augmentation: every offset and both directions by hand, drawn from the seed of a batch, of images only."""

from __future__ import annotations

import pytest
import torch

from sparsify.errors import DataError
from sparsify.loading.augmentation import augmented, check_augmentation
from sparsify.parts.samples import TensorSamples

IMAGES = torch.rand(2, 1, 8, 8)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.rand(2, 5), r"float \[N, C, H, W\]; the inputs are torch.float32 of shape \[2, 5\]"),
        (torch.zeros(2, 1, 8, 8).long(), "torch.int64 of shape"),
        ({"image": IMAGES, "age": torch.rand(2, 1)}, r"several \(image \[2, 1, 8, 8\], age \[2, 1\]\)"),
    ],
)
def test_only_images_are_augmented(inputs, message):
    with pytest.raises(DataError, match=message):
        check_augmentation(inputs, "crop-flip")
    check_augmentation(inputs, "none")
    check_augmentation(IMAGES, "crop-flip")
    samples = TensorSamples(inputs, torch.zeros(2).long())
    assert augmented(samples, "none") is samples
    with pytest.raises(DataError, match=r"float \[N, C, H, W\]"):
        augmented(samples, "crop-flip")


def test_each_image_is_one_of_the_162_and_all_of_them_come():
    image = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    samples = augmented(TensorSamples(image.expand(4000, 1, 3, 3), torch.arange(4000)), "crop-flip")
    x, y = samples.batch(torch.arange(4000), seed=5)
    padded = torch.nn.functional.pad(image[0, 0], (4, 4, 4, 4))
    crops = [padded[i : i + 3, j : j + 3] for i in range(9) for j in range(9)]
    possible = {tuple(view.flatten().tolist()) for crop in crops for view in (crop, crop.flip(1))}
    assert {tuple(row) for row in x.flatten(1).tolist()} == possible
    assert torch.equal(y, torch.arange(4000)) and len(samples) == 4000


def test_the_seed_of_a_batch_decides_and_nothing_else_is_drawn():
    samples = augmented(TensorSamples(torch.rand(16, 3, 8, 8), torch.arange(16)), "crop-flip")
    before, rows = torch.random.get_rng_state(), torch.arange(16)
    first, second, other = (samples.batch(rows, seed=seed).inputs for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)
