"""Samples from arrays, such as those of an .npz file: checked, and kept in memory in their own dtype."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sparsify.errors import DataError
from sparsify.loading.images import Progress, decode_all
from sparsify.loading.pairs import check_bytes
from sparsify.loading.pixels import Channels
from sparsify.loading.targets import checked_targets
from sparsify.parts.samples import Samples, TensorSamples
from sparsify.parts.trees import Tree, described, mapped, tensors

Arrays = dict[str, np.ndarray]
PARTS = ("train", "validation", "test")
PIECE = 4096
Statistics = tuple[Tensor, Tensor]
"""Mean and standard deviation per channel."""
UNLIKE = 16
"""Two parts of images have different scales if their highest values differ by more than this factor and one of them is at most 1."""


def read_npz(
    path: Path, *, size: int | None = None, channels: Channels = "auto", on_progress: Progress | None = None
) -> Arrays:
    """Return the arrays of a file, encoded images decoded.

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
            f"there is no data file {path}. Give 'digits', an .npz or .csv file, a folder of images, or file.py:factory."
        )
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{path} cannot be read as .npz: it is no zip archive of arrays. Give 'digits', an .npz that numpy.savez wrote, a folder of "
            f"images, a table whose name ends in .csv, or file.py:factory, a function of yours that reads the file and returns its arrays."
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
    encoded = [key for key in arrays if key.startswith("images_") and f"offsets_{key[7:]}" in arrays]
    for key in sorted(encoded, key=_order):
        blob, offsets = arrays.pop(key), arrays.pop(f"offsets_{key[7:]}")
        images = decode_all(blob, offsets, f"{path}, {key}", size=size, channels=channels, on_progress=on_progress)
        if images.shape[1] == 3:
            channels = "rgb"  # then grey images of other parts are read as the training part's are
        arrays[f"x_{key[7:]}"] = images
    if size is not None and not encoded:
        raise DataError(f"{path} holds no encoded images to resize. Leave image_size out.")
    wanted = [f"{kind}_{part}" for part in PARTS for kind in "xy" if part == "train" or _names_part(arrays, part)]
    missing = [name for name in wanted if _under(arrays, name) is None]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(sorted(arrays)) or 'nothing'}.")
    return arrays


def read_arrays(path: Path) -> Arrays:
    """Return all arrays of an .npz file, which may not take more memory than is free, whatever they are packed into.

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
    """Return bytes that the machine can still give; where it does not say, 2**62."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return 2**62


def encoded_inputs(path: Path) -> set[str]:
    """Return the inputs of an .npz file that are encoded images, not pixels, by their names; an only input has the empty text."""
    with np.load(path, allow_pickle=False) as archive:
        return {name.partition(".")[2] for name in archive.files if name.partition(".")[0] == "images_train"}


def stored_layout(x: np.ndarray) -> Literal["NF", "NHW", "NHWC", "NCHW"]:
    """Return the layout of arrays of features [N, F] or images, as `samples_of_arrays` reads them."""
    if x.ndim == 2:
        return "NF"
    if x.ndim == 3:
        return "NHW"
    return "NHWC" if _arranged(x) is not x else "NCHW"


def _order(key: str) -> int:
    """Return the place of an array's part among all parts."""
    return next((place for place, part in enumerate(PARTS) if part in key), len(PARTS))


def _names_part(arrays: Arrays, part: str) -> bool:
    return any(name.partition(".")[0].endswith(f"_{part}") for name in arrays)


def _under(arrays: Mapping[str, Any], name: str) -> Any:
    """Return the array of a name, or those of ``name.<key>`` by key; None where there is neither.

    Raises:
        DataError: If there are both, or a key is no name.
    """
    parts = {key.partition(".")[2]: value for key, value in arrays.items() if key.startswith(f"{name}.")}
    if name in arrays and parts:
        raise DataError(
            f"the data hold {name} and {name}.{next(iter(parts))}. Name all of several inputs, or give one."
        )
    if strange := [key for key in parts if not key.isidentifier()]:
        raise DataError(f"{name}.{strange[0]} should end in the name of an argument of forward, found {strange[0]!r}.")
    return arrays.get(name) if name in arrays else parts or None


def samples_of_arrays(
    text: str,
    arrays: Mapping[str, Any],
    *,
    normalise: bool = True,
    as_images: bool = True,
    statistics: Statistics | None = None,
    task: str | None = None,
) -> dict[str, Samples]:
    """Return samples of ``x_<part>`` and ``y_<part>``, or of several named arrays ``x_<part>.<name>``, ``y_<part>.<name>``.

    Args:
        text: which data, for messages.
        arrays: by name; those of several may be given as a tuple or a mapping too.
        normalise: images per channel, by the training part; of several inputs, those that are bytes.
        as_images: arrange [N, H, W] and [N, H, W, C] as [N, C, H, W], and refuse other shapes; False does so to bytes alone and takes
            other arrays as they are, as the arrays of several inputs always are.
        statistics: mean and std, per channel or feature or one for all, in place of the training part's.
        task: see `checked_targets`.

    Raises:
        DataError: If an array has the wrong shape or type, or holds values it may not.
    """
    names = [part for part in PARTS if _under(arrays, f"x_{part}") is not None]
    given = {part: _under(arrays, f"x_{part}") for part in names}
    targets: dict[str, Tree] = {}
    for part in names:
        rows = _rows(f"{text}: x_{part}", given[part])
        targets[part] = checked_targets(_under(arrays, f"y_{part}"), f"{text}: y_{part}", task=task)
        for tensor in tensors(targets[part]):
            if len(tensor) != rows:
                raise DataError(
                    f"{text}: x_{part} has {rows} samples, y_{part} has {len(tensor)}; they should be as many."
                )
    form = {part: _form(targets[part]) for part in names}
    for part in names:
        if form[part] != form["train"]:
            raise DataError(f"{text}: y_train holds {form['train']}, y_{part} {form[part]}. Give all parts alike.")
    if not isinstance(given["train"], (Mapping, tuple)):
        inputs = {part: checked_inputs(text, f"x_{part}", given[part], as_images) for part in names}
        mean, std = _prepared(text, inputs, statistics, normalise=normalise) or (None, None)
        return {part: TensorSamples(inputs[part], targets[part], mean=mean, std=std) for part in names}
    if statistics is not None:
        raise DataError(
            f"{text} has several inputs, and mean and std are for one. Leave them out, or prepare the inputs."
        )
    return _several(text, given, targets, normalise=normalise)


def _several(
    text: str, given: Mapping[str, Any], targets: Mapping[str, Tree], *, normalise: bool
) -> dict[str, Samples]:
    """Return samples of several inputs, each prepared by itself."""
    table = {part: dict(x) if isinstance(x, Mapping) else dict(enumerate(x)) for part, x in given.items()}
    keys = list(table["train"])
    for part in table:
        if set(table[part]) != set(keys):
            raise DataError(
                f"{text}: the training part has the inputs {', '.join(map(str, keys))}, the {part} part "
                f"{', '.join(map(str, table[part]))}. Give the same to all parts."
            )
        check_bytes(table[part], f"{text}: x_{part}")
    inputs: dict[str, dict[Any, Tensor]] = {part: {} for part in table}
    statistics: dict[Any, Statistics] = {}
    for key in keys:
        each = {part: checked_inputs(text, f"x_{part}.{key}", table[part][key], False) for part in table}
        found = _prepared(text, each, None, normalise=normalise and each["train"].dtype is torch.uint8, name=f".{key}")
        statistics |= {} if found is None else {key: found}
        for part, tensor in each.items():
            inputs[part][key] = tensor
    mean, std = ({key: pair[place] for key, pair in statistics.items()} or None for place in (0, 1))
    named = isinstance(given["train"], Mapping)
    return {
        part: TensorSamples(x if named else tuple(x.values()), targets[part], mean=mean, std=std)
        for part, x in inputs.items()
    }


def _rows(where: str, given: Any) -> int:
    """Return samples of one part.

    Raises:
        DataError: If there are none, or inputs have unlike numbers of them.
    """
    values = (
        list(given.values()) if isinstance(given, Mapping) else list(given) if isinstance(given, tuple) else [given]
    )
    counts = {0 if np.ndim(value) == 0 else len(value) for value in values}
    if not counts or 0 in counts:
        raise DataError(f"{where} is empty. Give at least a few samples per class.")
    if len(counts) > 1:
        raise DataError(
            f"{where}: the inputs have {' and '.join(map(str, sorted(counts)))} samples. Give as many of each."
        )
    return next(iter(counts))


def _form(targets: Tree) -> str:
    """Return what the targets of all parts have in common: names, kinds of numbers, shapes of a sample."""
    if isinstance(targets, Tensor):
        sizes = ", ".join(["N", *map(str, targets.shape[1:])])
        return f"{str(targets.dtype).removeprefix('torch.')} [{sizes}]"
    return described(mapped(lambda tensor: tensor[:0], targets))


def _prepared(
    text: str,
    inputs: Mapping[str, Tensor],
    statistics: Statistics | None,
    *,
    normalise: bool,
    name: str = "",
) -> Statistics | None:
    """Return mean and std that inputs are to be normalised by, from the parts of one input.

    Raises:
        DataError: If the parts have unlike shapes or scales, or ``statistics`` other channels.
    """
    shapes = {part: tuple(x.shape[1:]) for part, x in inputs.items()}
    what = f"inputs{name and f' {name[1:]!r}'}"
    for part, shape in shapes.items():
        if shape != shapes["train"]:
            raise DataError(f"{text}: training {what} have shape {list(shapes['train'])}, {part} {what} {list(shape)}.")
    _one_scale(text, inputs, name)
    if statistics is not None:
        return per_channel(text, statistics, shapes["train"][0])
    return channel_statistics(inputs["train"]) if normalise and len(shapes["train"]) == 3 else None


def per_channel(text: str, statistics: Statistics, channels: int) -> Statistics:
    """Return mean and std of so many channels from those of all, or one for all.

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


def channel_statistics(x: Tensor) -> Statistics:
    """Return mean and standard deviation per channel of images [N, C, H, W] (bytes as [0, 1]), each float32 [C], summed in pieces."""
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


def _one_scale(text: str, parts: Mapping[str, Tensor], name: str) -> None:
    """Refuse parts that are prepared differently: bytes beside floats, or images in [0, 1] beside images up to 255.

    Raises:
        DataError: If so.
    """
    train = parts["train"]
    for part, x in parts.items():
        if x.dtype is not train.dtype:
            raise DataError(
                f"{text}: x_train{name} holds {train.dtype}, x_{part}{name} {x.dtype}, which would be scaled differently. Give all parts "
                f"as uint8 images, or all as floats on one scale."
            )
        if x.ndim == 4 and x.is_floating_point():
            highest, other = float(train.abs().max()), float(x.abs().max())
            if max(highest, other) > UNLIKE * max(min(highest, other), 1e-30) and min(highest, other) <= 1.0 < max(
                highest, other
            ):
                raise DataError(
                    f"{text}: images reach {highest:g} in x_train{name} and {other:g} in x_{part}{name}, so that one of them is in [0, 1] "
                    f"and the other is not. Give all parts on one scale."
                )


def checked_inputs(text: str, name: str, values: Any, as_images: bool) -> Tensor:
    """One array of inputs, as `samples_of_arrays` describes them.

    Args:
        text: which data, for messages.
        name: of the array.
        values: the array.
        as_images: see `samples_of_arrays`.

    Raises:
        DataError: If it has the wrong shape or type, or holds what it may not.
    """
    where, x = f"{text}: {name}", np.asarray(values)
    if x.ndim == 0 or len(x) == 0:
        raise DataError(f"{where} is empty. Give at least a few samples per class.")
    if not (np.issubdtype(x.dtype, np.number) or x.dtype == np.bool_) or np.issubdtype(x.dtype, np.complexfloating):
        raise DataError(f"{where} holds {x.dtype}; inputs are numbers, best uint8 images or float32.")
    if np.issubdtype(x.dtype, np.floating):
        for start in range(0, len(x), PIECE):
            bad = ~np.isfinite(x[start : start + PIECE])
            if bad.any():
                at = np.unravel_index(int(bad.argmax()), bad.shape)
                index = ", ".join(str(int(i)) for i in (at[0] + start, *at[1:]))
                raise DataError(
                    f"{where} holds NaN or infinity, first in sample {at[0] + start}: {name}[{index}] is {x[start:][at]}. Clean the data."
                )
    if x.dtype == np.uint8 or (x.dtype == np.bool_ and not as_images):
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
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))


def _arranged(x: np.ndarray) -> np.ndarray:
    """[N, H, W] and [N, H, W, C] as [N, C, H, W]; other shapes as they are."""
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[-1] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        return x.transpose(0, 3, 1, 2)
    return x
