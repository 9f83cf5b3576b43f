"""Samples from arrays: an .npz file's, checked, and kept in memory as they are."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from sparsify.errors import DataError
from sparsify.loading.images import Progress, decode_all
from sparsify.loading.pixels import Channels
from sparsify.parts.samples import Samples, TensorSamples

Arrays = dict[str, np.ndarray]
PARTS = ("train", "validation", "test")
PIECE = 4096
HIGHEST_LABEL = 2**20
OTHER_TASKS = ", which `sparsify run` does not train. Use sparsify.attach in a loop of your own."
UNLIKE = 16
"""Images whose highest values differ by more than this factor, one of them at most 1, are on different scales."""


def read_npz(
    path: Path, *, size: int | None = None, channels: Channels = "auto", on_progress: Progress | None = None
) -> Arrays:
    """The arrays of a file, encoded images decoded.

    Args:
        path: of the file.
        size: side in pixels to which encoded images are resized.
        channels: of encoded images: ``rgb``, ``grey``, or ``auto``, as those of the training part are.
        on_progress: see `decode_all`.

    Raises:
        DataError: If the file is missing, no .npz, pickled, or lacks arrays.
    """
    if not path.is_file():
        raise DataError(
            f"there is no data file {path}. Give 'digits', an .npz file, a folder of images, or file.py:factory."
        )
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{path} cannot be read as .npz: it is no zip archive of arrays. Give 'digits', an .npz that numpy.savez wrote, a folder of "
            f"images, or file.py:factory, a function of yours that reads the file (a table of text, say) and returns its arrays."
        )
    try:
        arrays = read_arrays(path)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as .npz without unpickling ({type(error).__name__}: {error}). "
            f"Save plain arrays with numpy.savez."
        ) from error
    encoded = [part for part in PARTS if f"images_{part}" in arrays and f"offsets_{part}" in arrays]
    for part in encoded:
        blob, offsets = arrays.pop(f"images_{part}"), arrays.pop(f"offsets_{part}")
        where = f"{path}, images_{part}"
        images = decode_all(blob, offsets, where, size=size, channels=channels, on_progress=on_progress)
        if images.shape[1] == 3:
            channels = "rgb"  # then grey images of other parts are read as the training part's are
        arrays[f"x_{part}"] = images
    if size is not None and not encoded:
        raise DataError(f"{path} holds no encoded images to resize. Leave image_size out.")
    wanted = [f"{kind}_{part}" for part in PARTS for kind in "xy" if part == "train" or _names_part(arrays, part)]
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(sorted(arrays)) or 'nothing'}.")
    return arrays


def read_arrays(path: Path) -> Arrays:
    """All arrays of an .npz file, which may not take more memory than is free, whatever they are packed into.

    Raises:
        DataError: If they would.
    """
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > free_memory():
        raise DataError(
            f"{path} would take {size:,} bytes of memory unpacked ({path.stat().st_size:,} on disk), and {free_memory():,} are free."
        )
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        held = {name: archive[name] for name in archive.files}
    strange = [name for name, value in held.items() if not isinstance(value, np.ndarray)]
    if strange:
        raise DataError(f"{path} holds {strange[0]!r}, which is no array. Save plain arrays with numpy.savez.")
    return held


def free_memory() -> int:
    """Bytes that the machine can still give; where it does not say, 2**62."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return 2**62


def holds_encoded_images(path: Path) -> bool:
    """Whether the training part of an .npz file is encoded images, not pixels."""
    with np.load(path, allow_pickle=False) as archive:
        return "images_train" in archive.files


def stored_layout(x: np.ndarray) -> Literal["NF", "NHW", "NHWC", "NCHW"]:
    """The layout of arrays of features [N, F] or images, as `samples_of_arrays` reads them."""
    if x.ndim == 2:
        return "NF"
    if x.ndim == 3:
        return "NHW"
    return "NHWC" if _arranged(x) is not x else "NCHW"


def _names_part(arrays: Arrays, part: str) -> bool:
    return any(name.endswith(f"_{part}") for name in arrays)


def samples_of_arrays(
    text: str,
    arrays: Mapping[str, np.ndarray],
    *,
    normalise: bool = True,
    as_images: bool = True,
    statistics: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> dict[str, Samples]:
    """Samples of ``x_<part>`` and ``y_<part>``.

    Args:
        text: which data, for messages.
        arrays: by name.
        normalise: images per channel, by the training part.
        as_images: arrange [N, H, W] and [N, H, W, C] as [N, C, H, W], and refuse other shapes; False does so to bytes alone and takes
            other arrays as they are.
        statistics: mean and std, per channel or feature or one for all, in place of the training part's.

    Raises:
        DataError: If an array has the wrong shape or type, labels are not whole numbers from 0, or values are not finite.
    """
    names = [part for part in PARTS if f"x_{part}" in arrays]
    checked = {part: checked_inputs(text, part, arrays[f"x_{part}"], arrays[f"y_{part}"], as_images) for part in names}
    shapes = {part: tuple(x.shape[1:]) for part, (x, _) in checked.items()}
    for part, shape in shapes.items():
        if shape != shapes["train"]:
            raise DataError(f"{text}: training inputs have shape {list(shapes['train'])}, {part} inputs {list(shape)}.")
    _one_scale(text, {part: x for part, (x, _) in checked.items()})
    mean = std = None
    if statistics is not None:
        mean, std = per_channel(text, statistics, shapes["train"][0])
    elif normalise and len(shapes["train"]) == 3:
        mean, std = channel_statistics(checked["train"][0])
    return {part: TensorSamples(x, y, mean=mean, std=std) for part, (x, y) in checked.items()}


def per_channel(
    text: str, statistics: tuple[torch.Tensor, torch.Tensor], channels: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and std of so many channels from those of all, or one for all.

    Raises:
        DataError: If there are others than one or ``channels`` numbers.
    """
    for name, value in zip(("mean", "std"), statistics, strict=True):
        if len(value) not in (1, channels):
            raise DataError(
                f"{text}: {name} has {len(value)} numbers, the inputs {channels} channels or features. Give as many, or one for all."
            )
    mean, std = (value.expand(channels).clone() for value in statistics)
    return mean, std


def channel_statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation per channel of images [N, C, H, W] (bytes as [0, 1]), each float32 [C], summed in pieces."""
    channels = x.shape[1]
    if (
        x.dtype is torch.uint8
    ):  # from how often each value occurs: exact, and many times as fast as sums in double precision
        counts = torch.zeros(channels, 256, dtype=torch.int64)
        for piece in x.split(PIECE):
            for channel in range(channels):
                counts[channel] += torch.bincount(piece[:, channel].flatten(), minlength=256)
        values, number = torch.arange(256).double() / 255, x.numel() // channels
        mean = (counts * values).sum(1) / number
        square = (counts * (values - mean[:, None]) ** 2).sum(1) / number
    else:
        number, mean, square = x.numel() // channels, torch.zeros(channels).double(), torch.zeros(channels).double()
        for piece in x.split(PIECE):
            mean += piece.double().sum(dim=(0, 2, 3)) / number
        for piece in x.split(PIECE):
            square += ((piece.double() - mean.view(1, -1, 1, 1)) ** 2).sum(dim=(0, 2, 3)) / number
    return mean.float(), square.sqrt().clamp_min(1e-6).float()


def checked_labels(labels: np.ndarray, where: str) -> torch.Tensor:
    """Labels as int64 [N].

    Raises:
        DataError: If they are not whole numbers from 0 in one dimension.
    """
    if labels.ndim != 1:
        raise DataError(
            f"{where} should hold one class per sample, [N], found shape {list(labels.shape)}. {_labels_advice(labels)}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{where} should hold classes, whole numbers from 0, found {labels.dtype}. {_labels_advice(labels)}"
        )
    wrong = (labels < 0) | (labels > HIGHEST_LABEL)
    if wrong.any():
        index = int(wrong.argmax())
        raise DataError(
            f"{where} should hold whole numbers from 0 to {HIGHEST_LABEL}, found {labels[index]} at sample {index}."
        )
    return torch.from_numpy(labels.astype(np.int64))


def _labels_advice(labels: np.ndarray) -> str:
    """What to do about labels that are no classes, by what they seem to be."""
    if not (np.issubdtype(labels.dtype, np.number) or labels.dtype == np.bool_):
        return "Number the classes from 0: numpy.unique(y, return_inverse=True)[1]."
    whole = bool(np.isfinite(labels).all() and (labels == np.round(labels)).all())
    if not whole:
        return f"These look like the targets of a regression{OTHER_TASKS}"
    if labels.ndim == 1:
        return "All are whole, so y.astype('int64') keeps them as they are."
    if labels.ndim == 2 and labels.shape[1] == 1:
        return "Use y.ravel()."
    one_hot = labels.ndim == 2 and bool(np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all())
    if one_hot:
        return "These are one-hot: use y.argmax(1)."
    return f"These look like several labels or positions per sample{OTHER_TASKS}"


def _one_scale(text: str, parts: Mapping[str, torch.Tensor]) -> None:
    """Refuse parts that are prepared differently: bytes beside floats, or images in [0, 1] beside images up to 255.

    Raises:
        DataError: If so.
    """
    train = parts["train"]
    for part, x in parts.items():
        if x.dtype is not train.dtype:
            raise DataError(
                f"{text}: x_train holds {train.dtype}, x_{part} {x.dtype}, which would be scaled differently. Give all parts as uint8 "
                f"images, or all as floats on one scale."
            )
        if x.ndim == 4 and x.is_floating_point():
            highest, other = float(train.abs().max()), float(x.abs().max())
            if max(highest, other) > UNLIKE * max(min(highest, other), 1e-30) and min(highest, other) <= 1.0 < max(
                highest, other
            ):
                raise DataError(
                    f"{text}: images reach {highest:g} in x_train and {other:g} in x_{part}, so that one of them is in [0, 1] and the "
                    f"other is not. Give all parts on one scale."
                )


def checked_inputs(
    text: str, part: str, x: np.ndarray, y: np.ndarray, as_images: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels of one part, as `samples_of_arrays` describes them.

    Raises:
        DataError: If an array has the wrong shape or type, or holds what it may not.
    """
    where = f"{text}: x_{part}"
    if x.ndim == 0 or len(x) == 0:
        raise DataError(f"{where} is empty. Give at least a few samples a class.")
    labels = checked_labels(y, f"{text}: y_{part}")
    if len(x) != len(y):
        raise DataError(f"{where} has {len(x)} samples, y_{part} has {len(y)}; they should be as many.")
    if not (np.issubdtype(x.dtype, np.number) or x.dtype == np.bool_) or np.issubdtype(x.dtype, np.complexfloating):
        raise DataError(f"{where} holds {x.dtype}; inputs are numbers, best uint8 images or float32.")
    if np.issubdtype(x.dtype, np.floating):
        for start in range(0, len(x), PIECE):
            bad = ~np.isfinite(x[start : start + PIECE])
            if bad.any():
                at = np.unravel_index(int(bad.argmax()), bad.shape)
                index = ", ".join(str(int(i)) for i in (at[0] + start, *at[1:]))
                raise DataError(
                    f"{where} holds NaN or infinity, first in sample {at[0] + start}: x_{part}[{index}] is {x[start:][at]}. Clean the data."
                )
    if x.dtype == np.uint8:
        values = x
    elif as_images or not np.issubdtype(x.dtype, np.integer):
        with np.errstate(over="ignore"):
            values = x.astype(np.float32, copy=False)
        if x.dtype.itemsize > 4 and not np.isfinite(values).all():
            at = int((~np.isfinite(values)).reshape(len(values), -1).any(1).argmax())
            raise DataError(
                f"{where} holds numbers beyond float32 (3.4e38), first in sample {at}: {np.abs(x[at]).max():g} would become infinity. "
                f"Scale or clean the data."
            )
    else:
        values = x.astype(np.int64, copy=False)
    if as_images or x.dtype == np.uint8:
        values = _arranged(values)
    if as_images and (values.ndim not in {2, 4} or (x.dtype == np.uint8 and values.ndim != 4)):
        raise DataError(
            f"{where} has shape {list(x.shape)}; images are [N, H, W], [N, H, W, C] or [N, C, H, W], features float [N, F]. "
            f"Other inputs come from file.py:factory."
        )
    return torch.from_numpy(np.require(values, requirements=["C", "W"])), labels


def _arranged(x: np.ndarray) -> np.ndarray:
    """[N, H, W] and [N, H, W, C] as [N, C, H, W]; other shapes as they are."""
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[-1] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        return x.transpose(0, 3, 1, 2)
    return x
