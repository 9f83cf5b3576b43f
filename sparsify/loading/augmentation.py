"""Shifts and flips training images when they are fetched."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from sparsify.errors import DataError
from sparsify.parts.samples import Batch, Samples
from sparsify.parts.trees import Tree, shapes

Augmentation = Literal["none", "crop-flip"]
MARGIN = 4
"""Number of pixels by which images are padded on each side before they are cropped."""


class Augmented:
    """Samples whose images are padded by `MARGIN`, cropped at random, and flipped with probability 1/2.

    The random numbers depend only on the seed of a batch.

    Args:
        samples: samples with one input, float images [N, C, H, W].

    Raises:
        DataError: If the inputs are not images.
    """

    def __init__(self, samples: Samples) -> None:
        check_augmentation(samples.batch(torch.arange(1)).inputs, "crop-flip")
        self.samples, self.targets = samples, samples.targets

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, rows: Tensor, *, seed: int = 0) -> Batch:
        inputs, target = self.samples.batch(rows, seed=seed)
        assert isinstance(inputs, Tensor)
        return Batch(cropped_and_flipped(inputs, torch.Generator().manual_seed(seed)), target)

    def fingerprint(self) -> str:
        return f"crop-flip-{self.samples.fingerprint()}"


def augmented(samples: Samples, augmentation: Augmentation) -> Samples:
    """Return the samples as a run trains on them.

    Raises:
        DataError: If the inputs should be augmented but are not images.
    """
    return samples if augmentation == "none" else Augmented(samples)


def cropped_and_flipped(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image of a batch [N, C, H, W] by up to `MARGIN` pixels per direction, and mirror it with probability 1/2."""
    n, _, h, w = x.shape
    padded = nn.functional.pad(x, (MARGIN,) * 4)
    top, left = (torch.randint(2 * MARGIN + 1, (n,), generator=generator) for _ in range(2))
    rows = (top[:, None] + torch.arange(h))[:, None, :, None]
    columns = (left[:, None] + torch.arange(w))[:, None, None, :]
    cropped = padded[torch.arange(n)[:, None, None, None], torch.arange(x.shape[1])[None, :, None, None], rows, columns]
    flipped = torch.rand(n, generator=generator) < 0.5
    return torch.where(flipped[:, None, None, None], cropped.flip(3), cropped)


def check_augmentation(inputs: Tree, augmentation: str) -> None:
    """Check that inputs can be augmented.

    Raises:
        DataError: If ``augmentation`` is not ``none`` and the inputs are not one float tensor [N, C, H, W].
    """
    if augmentation == "none" or (isinstance(inputs, Tensor) and inputs.is_floating_point() and inputs.ndim == 4):
        return
    found = (
        f"{inputs.dtype} of shape {list(inputs.shape)}" if isinstance(inputs, Tensor) else f"several ({shapes(inputs)})"
    )
    raise DataError(
        f"augment = {augmentation!r} shifts and flips images, float [N, C, H, W]; the inputs are {found}. Set augment = 'none', and draw "
        f"what is random in a Dataset of your own."
    )
