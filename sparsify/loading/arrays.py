"""Makes samples from arrays, such as those of an .npz file: checks them and keeps them in memory in their own dtype."""

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
    """Return the arrays of a file by name, with encoded images decoded.

    Args:
        path: path of the file.
        size: side in pixels to which encoded images are resized.
        channels: how to read encoded images: ``rgb``, ``grey``, or ``auto``, which follows the training images.
        on_progress: called while images are decoded; see `decode_all`.

    Raises:
        DataError: If the file is missing, is not an .npz, is pickled, or lacks arrays.
    """
    if not path.is_file():
        raise DataError(
            f"there is no data file {path}. Give 'digits', an .npz or .csv file, a folder of images, or file.py:factory."
        )
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{path} cannot be read as .npz: it is not a zip archive of arrays. Give 'digits', an .npz that numpy.savez wrote, a folder of "
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
            channels = "rgb"  # read grey images of other parts with three channels too, as the training part
        arrays[f"x_{key[7:]}"] = images
    if size is not None and not encoded:
        raise DataError(f"{path} holds no encoded images to resize. Leave image_size out.")
    wanted = [f"{kind}_{part}" for part in PARTS for kind in "xy" if part == "train" or _names_part(arrays, part)]
    missing = [name for name in wanted if _under(arrays, name) is None]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(sorted(arrays)) or 'nothing'}.")
    return arrays


def read_arrays(path: Path) -> Arrays:
    """Return all arrays of an .npz file by name.

    Raises:
        DataError: If the unpacked arrays would take more memory than is free, or an entry is not an array.
    """
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > free_memory():
        raise DataError(
            f"{path} needs {size:,} bytes of memory when unpacked ({path.stat().st_size:,} on disk), but only {free_memory():,} are free. "
            f"Save fewer samples, or read the data in a Dataset of your own, with file.py:factory."
        )
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        held = {name: archive[name] for name in archive.files}
    strange = [name for name, value in held.items() if not isinstance(value, np.ndarray)]
    if strange:
        raise DataError(f"{path} holds {strange[0]!r}, which is not an array. Save plain arrays with numpy.savez.")
    return held


def free_memory() -> int:
    """Return the free memory of the machine in bytes; 2**62 if it is unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return 2**62


def encoded_inputs(path: Path) -> set[str]:
    """Return the names of those inputs of an .npz file that are encoded images; the name of a single input is empty."""
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
    """Return the position of an array's part in `PARTS`."""
    return next((place for place, part in enumerate(PARTS) if part in key), len(PARTS))


def _names_part(arrays: Arrays, part: str) -> bool:
    return any(name.partition(".")[0].endswith(f"_{part}") for name in arrays)


def _under(arrays: Mapping[str, Any], name: str) -> Any:
    """Return the array of a name, or the arrays ``name.<key>`` by key; None if there are none.

    Raises:
        DataError: If both exist, or a key is not an identifier.
    """
    parts = {key.partition(".")[2]: value for key, value in arrays.items() if key.startswith(f"{name}.")}
    if name in arrays and parts:
        raise DataError(
            f"the data contain both {name} and {name}.{next(iter(parts))}. Give either a single array {name}, or only named arrays."
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
        text: name of the data, for messages.
        arrays: arrays by name; several inputs or targets may also be given as a tuple or a mapping.
        normalise: normalise images per channel by the training part; if there are several inputs, only those that are bytes.
        as_images: arrange [N, H, W] and [N, H, W, C] as [N, C, H, W], and refuse other shapes. If False, only bytes are arranged, and other
            arrays keep their shape, as for several inputs.
        statistics: mean and std to use instead of the training part's: one number per channel or feature, or one for all.
        task: name of the task; see `checked_targets`.

    Raises:
        DataError: If an array has the wrong shape or type, or contains values that are not allowed.
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
                    f"{text}: x_{part} has {rows} samples, y_{part} has {len(tensor)}. Give one target per sample."
                )
    form = {part: _form(targets[part]) for part in names}
    for part in names:
        if form[part] != form["train"]:
            raise DataError(
                f"{text}: y_train has {form['train']}, but y_{part} has {form[part]}. Give all parts targets of the same dtype and shape."
            )
    if not isinstance(given["train"], (Mapping, tuple)):
        inputs = {part: checked_inputs(text, f"x_{part}", given[part], as_images) for part in names}
        mean, std = _prepared(text, inputs, statistics, normalise=normalise) or (None, None)
        return {part: TensorSamples(inputs[part], targets[part], mean=mean, std=std) for part in names}
    if statistics is not None:
        raise DataError(
            f"{text} has several inputs, but mean and std apply to a single input. Leave them out, or normalise the inputs "
            f"before you save them."
        )
    return _several(text, given, targets, normalise=normalise)


def _several(
    text: str, given: Mapping[str, Any], targets: Mapping[str, Tree], *, normalise: bool
) -> dict[str, Samples]:
    """Return samples with several inputs, each of which is prepared separately."""
    table = {part: dict(x) if isinstance(x, Mapping) else dict(enumerate(x)) for part, x in given.items()}
    keys = list(table["train"])
    for part in table:
        if set(table[part]) != set(keys):
            raise DataError(
                f"{text}: the training part has the inputs {', '.join(map(str, keys))}, but the {part} "
                f"part has {', '.join(map(str, table[part]))}. Give all parts the same inputs."
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
    """Return the number of samples of one part.

    Raises:
        DataError: If there are none, or the inputs have different numbers of samples.
    """
    values = (
        list(given.values()) if isinstance(given, Mapping) else list(given) if isinstance(given, tuple) else [given]
    )
    counts = {0 if np.ndim(value) == 0 else len(value) for value in values}
    if not counts or 0 in counts:
        raise DataError(f"{where} is empty. Give at least a few samples per class.")
    if len(counts) > 1:
        raise DataError(
            f"{where}: the inputs have {' and '.join(map(str, sorted(counts)))} samples. Give the same number of each."
        )
    return next(iter(counts))


def _form(targets: Tree) -> str:
    """Describe what must be the same for the targets of all parts: names, dtypes, and the shape of a sample."""
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
    """Return mean and std with which one input is to be normalised, given its parts; None if it is not to be normalised.

    Raises:
        DataError: If the parts have different shapes or scales, or ``statistics`` do not fit the channels.
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
    """Expand mean and std to one number per channel.

    Raises:
        DataError: If there are neither one nor ``channels`` numbers.
    """
    for name, value in zip(("mean", "std"), statistics, strict=True):
        if len(value) not in (1, channels):
            raise DataError(
                f"{text}: {name} has {len(value)} numbers, the inputs {channels} channels or features. Give one for each, or one for all."
            )
    mean, std = (value.expand(channels).clone() for value in statistics)
    return mean, std


def channel_statistics(x: Tensor) -> Statistics:
    """Compute mean and standard deviation per channel of images [N, C, H, W], bytes scaled to [0, 1]; each is float32 [C]."""
    channels = x.shape[1]
    if (
        x.dtype is torch.uint8
    ):  # counting how often each value occurs is exact, and many times as fast as summing in double precision
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
    """Check that all parts have the same scale.

    Raises:
        DataError: If some parts are bytes and others floats, or some images are in [0, 1] and others reach 255.
    """
    train = parts["train"]
    for part, x in parts.items():
        if x.dtype is not train.dtype:
            raise DataError(
                f"{text}: x_train{name} has dtype {train.dtype}, but x_{part}{name} has {x.dtype}, which would be scaled differently. Give "
                f"all parts as uint8 images, or all as floats on the same scale."
            )
        if x.ndim == 4 and x.is_floating_point():
            highest, other = float(train.abs().max()), float(x.abs().max())
            if max(highest, other) > UNLIKE * max(min(highest, other), 1e-30) and min(highest, other) <= 1.0 < max(
                highest, other
            ):
                raise DataError(
                    f"{text}: images reach {highest:g} in x_train{name} and {other:g} in x_{part}{name}, so only one of them is in "
                    f"[0, 1]. Give all parts on the same scale."
                )


def checked_inputs(text: str, name: str, values: Any, as_images: bool) -> Tensor:
    """Convert one array of inputs to a tensor; see `samples_of_arrays`.

    Args:
        text: name of the data, for messages.
        name: name of the array.
        values: the array.
        as_images: as for `samples_of_arrays`.

    Raises:
        DataError: If it has the wrong shape or type, or contains values that are not allowed.
    """
    where, x = f"{text}: {name}", np.asarray(values)
    if x.ndim == 0 or len(x) == 0:
        raise DataError(f"{where} is empty. Give at least a few samples per class.")
    if not (np.issubdtype(x.dtype, np.number) or x.dtype == np.bool_) or np.issubdtype(x.dtype, np.complexfloating):
        raise DataError(f"{where} has dtype {x.dtype}; inputs should be numbers, preferably uint8 images or float32.")
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
            f"For other inputs, use file.py:factory."
        )
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))


def _arranged(x: np.ndarray) -> np.ndarray:
    """Arrange [N, H, W] and [N, H, W, C] as [N, C, H, W]; other shapes stay unchanged."""
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[-1] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        return x.transpose(0, 3, 1, 2)
    return x
