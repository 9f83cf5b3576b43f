"""Samples from arrays: an .npz file's, checked, and kept in memory as they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from sparsify.errors import DataError
from sparsify.loading.images import decode_all
from sparsify.parts.samples import Samples, TensorSamples

Arrays = dict[str, np.ndarray]
PIECE = 4096


def read_npz(path: Path) -> Arrays:
    """The arrays of a file, encoded images decoded.

    Raises:
        DataError: If the file is missing, no .npz, pickled, or lacks arrays.
    """
    if not path.is_file():
        raise DataError(
            f"there is no data file {path}. Give 'digits', an .npz file, a folder of images, or file.py:factory."
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as .npz without unpickling ({type(error).__name__}: {error}). "
            f"Save plain arrays with numpy.savez."
        ) from error
    for part in ("train", "validation", "test"):
        if f"images_{part}" in arrays and f"offsets_{part}" in arrays:
            blob, offsets = arrays.pop(f"images_{part}"), arrays.pop(f"offsets_{part}")
            arrays[f"x_{part}"] = decode_all(blob, offsets, f"{path}, images_{part}")
    missing = [name for name in ("x_train", "y_train", "x_test", "y_test") if name not in arrays]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(sorted(arrays))}.")
    return arrays


def samples_of_arrays(text: str, arrays: Mapping[str, np.ndarray], *, normalise: bool = True) -> dict[str, Samples]:
    """Samples of ``x_<part>`` and ``y_<part>``; images normalised by the training part where ``normalise``.

    Raises:
        DataError: If an array has the wrong shape or type, labels are not whole numbers from 0, or values are not finite.
    """
    names = [part for part in ("train", "validation", "test") if f"x_{part}" in arrays]
    checked = {part: _checked(text, part, arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in names}
    shapes = {part: tuple(x.shape[1:]) for part, (x, _) in checked.items()}
    for part, shape in shapes.items():
        if shape != shapes["train"]:
            raise DataError(f"{text}: training inputs have shape {list(shapes['train'])}, {part} inputs {list(shape)}.")
    mean = std = None
    if normalise and len(shapes["train"]) == 3:
        mean, std = channel_statistics(checked["train"][0])
    return {part: TensorSamples(x, y, mean=mean, std=std) for part, (x, y) in checked.items()}


def channel_statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation per channel of images [N, C, H, W] (bytes as [0, 1]), each [C], summed in pieces."""
    scale = 255.0 if x.dtype is torch.uint8 else 1.0
    count = x.numel() // x.shape[1]
    total = sum(
        ((piece.double() / scale).sum(dim=(0, 2, 3)) for piece in x.split(PIECE)),
        start=torch.zeros(x.shape[1]).double(),
    )
    mean = total / count
    shape = (1, -1, 1, 1)
    squares = sum(
        (((piece.double() / scale - mean.view(shape)) ** 2).sum(dim=(0, 2, 3)) for piece in x.split(PIECE)),
        start=torch.zeros_like(mean),
    )
    return mean.float(), (squares / count).sqrt().clamp_min(1e-6).float()


def _checked(text: str, part: str, x: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    if len(x) == 0:
        raise DataError(f"{text}: x_{part} is empty.")
    if y.ndim != 1 or len(x) != len(y):
        raise DataError(
            f"{text}: x_{part} has {len(x)} samples, y_{part} has shape {list(y.shape)}; they should be as many."
        )
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
        raise DataError(f"{text}: y_{part} should hold whole numbers from 0, found {y.dtype} from {y.min()}.")
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.number):
        raise DataError(f"{text}: x_{part} holds {x.dtype}; inputs are numbers, best uint8 images or float32.")
    if np.issubdtype(x.dtype, np.complexfloating):
        raise DataError(f"{text}: x_{part} holds complex numbers; split them into real and imaginary channels.")
    if x.dtype != np.uint8:
        for start in range(0, len(x), PIECE):
            bad = ~np.isfinite(x[start : start + PIECE]).reshape(len(x[start : start + PIECE]), -1).all(axis=1)
            if bad.any():
                raise DataError(
                    f"{text}: x_{part} holds NaN or infinity, first in sample {start + int(bad.argmax())}. Clean the data."
                )
        x = x.astype(np.float32, copy=False)
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    if x.ndim not in {2, 4} or (x.dtype == np.uint8 and x.ndim != 4):
        raise DataError(
            f"{text}: x_{part} has shape {list(x.shape)}; images are [N, H, W], [N, H, W, C] or [N, C, H, W], features float [N, F]."
        )
    return torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y.astype(np.int64))
