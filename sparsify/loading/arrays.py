"""Makes samples from arrays, such as those of an .npz file: checks them and keeps them in memory in their own dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsify.errors import DataError
from sparsify.loading.pairs import check_bytes
from sparsify.loading.targets import checked_targets
from sparsify.parts.samples import Samples, TensorSamples
from sparsify.parts.trees import Tree, described, mapped, tensors
from sparsify.reading.arrays import PARTS, PIECE, checked_array, under

Statistics = tuple[Tensor, Tensor]
"""Mean and standard deviation per channel."""
UNLIKE = 16
"""Two parts of images have different scales if their highest values differ by more than this factor and one of them is at most 1."""


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
    names = [part for part in PARTS if under(arrays, f"x_{part}") is not None]
    given = {part: under(arrays, f"x_{part}") for part in names}
    targets: dict[str, Tree] = {}
    for part in names:
        rows = _rows(f"{text}: x_{part}", given[part])
        targets[part] = checked_targets(under(arrays, f"y_{part}"), f"{text}: y_{part}", task=task)
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
    """Convert one array of inputs to a tensor; see `sparsify.reading.arrays.checked_array`.

    Raises:
        DataError: If it has the wrong shape or type, or contains values that are not allowed.
    """
    return torch.from_numpy(checked_array(text, name, values, as_images))
