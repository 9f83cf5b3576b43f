"""Out-of-distribution inputs: unlabelled, and prepared in the same way as the training data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsify.errors import DataError
from sparsify.loading.arrays import checked_inputs, read_arrays
from sparsify.loading.data import Data
from sparsify.loading.datasets import samples_of_part
from sparsify.loading.factories import call_factory
from sparsify.loading.images import SUFFIXES, ImageFiles, Progress, decode_all
from sparsify.loading.sources import digits_arrays
from sparsify.parts.samples import Batch, Samples, TensorSamples
from sparsify.parts.trees import Tree

GRID = (20, 25)
"""Number of places, down and across, where patches are cut from each of the two photographs."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


def load_ood(text: str, data: Data, *, on_progress: Progress | None = None) -> Samples:
    """Load out-of-distribution inputs by name, with the size, channels and normalisation of ``data``; labels are not read.

    - ``file.npz``: the array ``x_test``, or else ``x``, of the shape of the training inputs. Or encoded images, ``images_test`` and
      ``offsets_test``, which are resized, and made grey if the training images are grey.
    - a folder: all images below it (below its ``test/`` if it exists), resized and made grey in the same way.
    - ``file.py:factory``: returns one data set: a pair (x, y), a Dataset or a DataLoader, whose inputs stay unchanged.
    - ``photos``: 1000 patches of scikit-learn's two photographs, as large as the training images.
    - ``digits``: the test part of scikit-learn's digits.

    Args:
        text: which inputs to load.
        data: the data that the model is trained on.
        on_progress: called while encoded images are decoded.

    Raises:
        DataError: If the inputs are missing, damaged, or cannot take the shape of the training inputs; the message says what to do.
        LoadError: If a factory is missing or fails.
    """
    example = data.example(1)
    shape: tuple[int, ...] = tuple(example.shape[1:]) if isinstance(example, Tensor) else ()
    if ":" in text and not Path(text).exists():
        samples = samples_of_part(call_factory(text, gives="data"), text)
    elif data.given_as == "prepared":
        raise DataError(
            f"{text}: the training inputs are prepared by a factory, or come from a table or several arrays, so out-of-distribution inputs "
            f"must come from a factory that prepares them in the same way. Give file.py:factory, which returns one data set."
        )
    elif Path(text).is_dir():
        samples = _Prepared(_files(Path(text), shape), data.statistics, grey=shape[:1] == (1,))
    else:
        samples = _prepared(text, _arrays(text, shape, on_progress), data)
    wanted, found = _form(example), _form(samples.batch(torch.arange(1)).inputs)
    if found != wanted:
        raise DataError(
            f"{text}: inputs have shape {found}, but those of the training data have {wanted}. Give encoded images or a folder, which are "
            f"resized, or arrays of that shape. A factory should return the same kind of inputs as for training."
        )
    return samples


def _form(inputs: Tree) -> str:
    """Return the names and shapes of inputs; for tokens, whose length may vary, only the number of dimensions."""
    if isinstance(inputs, Tensor):
        return str(list(inputs.shape[1:]) if inputs.is_floating_point() else ["..."] * (inputs.ndim - 1))
    rows = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
    return "; ".join(f"{name}: {_form(value)}" for name, value in rows)


def _prepared(text: str, x: np.ndarray, data: Data) -> Samples:
    inputs = checked_inputs(text, "x_test", x, True)
    labels = torch.zeros(len(inputs), dtype=torch.int64)
    given_as = "bytes" if inputs.dtype is torch.uint8 else "numbers"
    if given_as != data.given_as:
        raise DataError(
            f"{text}: inputs are given as {given_as}, but those of the training data as {data.given_as}, so their scales may differ. Give "
            f"uint8 images if the training data are uint8 images, and floats on the same scale if they are floats."
        )
    mean, std = data.statistics or (None, None)
    if mean is None or inputs.shape[1] != len(mean):
        return TensorSamples(inputs, labels)
    return TensorSamples(inputs, labels, mean=mean, std=std)


def _arrays(text: str, shape: tuple[int, ...], on_progress: Progress | None) -> np.ndarray:
    if text == "digits":
        return digits_arrays()["x_test"]
    if text == "photos":
        return _photos(*_image(text, shape))
    if not Path(text).is_file():
        raise DataError(
            f"there is no data file {text}. Give an .npz file, a folder of images, file.py:factory, photos or digits."
        )
    try:
        held = read_arrays(Path(text))
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{text} cannot be read as .npz without unpickling ({type(error).__name__}: {error}). Save plain arrays with numpy.savez."
        ) from error
    if {"images_test", "offsets_test"} <= held.keys():
        channels, *size = _image(text, shape)
        pixels = decode_all(
            held["images_test"],
            held["offsets_test"],
            f"{text}, images_test",
            size=(size[0], size[1]),
            on_progress=on_progress,
        )
        return _grey(pixels) if channels == 1 else pixels
    for name in ("x_test", "x"):
        if name in held:
            return held[name]
    raise DataError(
        f"{text} lacks x_test, x or images_test with offsets_test; it holds {', '.join(sorted(held)) or 'nothing'}."
    )


def _image(text: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return channels, height and width of the training images.

    Raises:
        DataError: If they are not grey or RGB images.
    """
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise DataError(
            f"{text}: images cannot take the shape {list(shape)} of the training inputs. Give arrays of that shape."
        )
    return shape[0], shape[1], shape[2]


def _grey(pixels: np.ndarray) -> np.ndarray:
    """Convert RGB bytes [N, 3, H, W] to grey bytes [N, 1, H, W]."""
    return np.rint(np.tensordot(pixels, LUMA, axes=([1], [0])))[:, None].astype(np.uint8)


def _photos(channels: int, height: int, width: int) -> np.ndarray:
    """Cut patches [1000, C, H, W] at a grid of places; large patches overlap."""
    from sklearn.datasets import load_sample_images

    images = [np.asarray(image) for image in load_sample_images().images]
    if height > images[0].shape[0] or width > images[0].shape[1]:
        raise DataError(
            f"photos: the photographs have 427 x 640 pixels, but the training images have {height} x {width}. Give a folder of "
            f"images instead."
        )
    patches = [
        image[top : top + height, left : left + width].transpose(2, 0, 1)
        for image in images
        for top in np.linspace(0, image.shape[0] - height, GRID[0]).astype(int)
        for left in np.linspace(0, image.shape[1] - width, GRID[1]).astype(int)
    ]
    pixels = np.stack(patches)
    return _grey(pixels) if channels == 1 else pixels


def _files(folder: Path, shape: tuple[int, ...]) -> ImageFiles:
    root = folder / "test" if (folder / "test").is_dir() else folder
    found = [
        path for path in sorted(root.rglob("*")) if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    if not found:
        raise DataError(f"{root} holds no images, which are files that end in {', '.join(sorted(SUFFIXES))}.")
    _, height, width = _image(str(folder), shape)
    return ImageFiles(found, [0] * len(found), size=(height, width), resize=True)


class _Prepared:
    """RGB images in [0, 1] that are made grey if required, and then normalised."""

    def __init__(self, base: ImageFiles, statistics: tuple[Tensor, Tensor] | None, *, grey: bool) -> None:
        self._base, self._statistics, self._grey, self.targets = base, statistics, grey, base.targets

    def __len__(self) -> int:
        return len(self._base)

    def batch(self, rows: Tensor, *, seed: int = 0) -> Batch:
        values, labels = self._base.batch(rows, seed=seed)
        if self._grey:
            weights = torch.tensor(LUMA).view(1, 3, 1, 1)
            values = ((values * 255 * weights).sum(1, keepdim=True)).round() / 255
        if self._statistics is not None:
            mean, std = (value.view(1, -1, 1, 1) for value in self._statistics)
            values = (values - mean) / std
        return Batch(values, labels)

    def fingerprint(self) -> str:
        return self._base.fingerprint()
