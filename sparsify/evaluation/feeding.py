"""From stored values to the input of a file: as its metadata say, or as the user says for a file of another tool."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsify.errors import EvaluationError
from sparsify.untrusted import parse_json

LAYOUTS = ("NCHW", "NHWC")
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
WHOLE = {
    "tensor(int8)": np.int8, "tensor(int16)": np.int16, "tensor(int32)": np.int32, "tensor(int64)": np.int64,
}  # fmt: skip
Shape = tuple[int | None, ...]
"""Sizes of an input; None: a size that varies."""


@dataclass(frozen=True)
class Preparation:
    """How stored values become inputs: ``(stored / scale - mean) / std`` per channel, then the layout.

    Attributes:
        mean: subtracted after the scaling, one number per channel or one for all; None: as the file says.
        std: divided by, one number per channel or one for all, above 0; None: as the file says.
        scale: what stored values are divided by first, above 0, such as 255 for bytes; None: as the file says.
        layout: ``NCHW`` or ``NHWC``, for images; None: what fits the shape of the input.

    Raises:
        EvaluationError: If a number is not finite or out of range, or the layout is unknown.

    Examples:
        >>> from sparsify.evaluation import Preparation
        >>> Preparation(scale=255, mean=(0.5,), std=(0.25,)).is_given
        True
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float | None = None
    layout: str | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and not (len(values) and all(map(math.isfinite, values))):
                raise EvaluationError(
                    f"{name} should hold finite numbers, one per channel or one for all, found {values}."
                )
        above = [*(self.std or ()), *([] if self.scale is None else [self.scale])]
        if not all(0 < value < math.inf for value in above):
            raise EvaluationError(f"std and scale should be above 0, found std {self.std} and scale {self.scale}.")
        if self.layout not in (None, *LAYOUTS):
            raise EvaluationError(f"layout should be one of {', '.join(LAYOUTS)}, found {self.layout!r}.")

    @property
    def is_given(self) -> bool:
        """Whether it says anything of the values."""
        return not self.mean is self.std is self.scale is None


def stated(metadata: Mapping[str, str], where: str) -> Preparation | None:
    """Return the preparation that the metadata of a file state; None if they state none, or the file computes it itself.

    Raises:
        EvaluationError: If an entry is malformed.
    """
    if metadata.get("preprocessing", "").startswith("in the graph") or not {"mean", "std", "scale"} <= metadata.keys():
        return None
    try:
        mean, std, scale = (parse_json(metadata[key]) for key in ("mean", "std", "scale"))
        return Preparation(tuple(map(float, mean)), tuple(map(float, std)), float(scale))
    except (ValueError, TypeError, EvaluationError) as error:
        raise EvaluationError(
            f"the metadata of {where} hold a mean, std or scale that cannot be used ({error}). Export the file again, or give --mean, "
            f"--std and --scale."
        ) from error


@dataclass(frozen=True)
class Feeding:
    """Makes inputs of a file from stored arrays.

    Attributes:
        dtype: of the input.
        shape: of the input, [N, ...]; None: a size that varies.
        preparation: the numbers, all given; None: values go in as they are.
        last: whether channels come last.
    """

    dtype: Any
    shape: Shape
    preparation: Preparation | None
    last: bool

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        """Return inputs of the file for stored values: images [N, C, H, W], or other arrays [N, ...]."""
        values = stored
        if self.preparation is not None:
            rank = (1, -1, *(1,) * (stored.ndim - 2))
            mean, std = (
                np.asarray(number, np.float32).reshape(rank) for number in (self.preparation.mean, self.preparation.std)
            )
            with np.errstate(over="ignore", invalid="ignore"):  # what is infinite is found in the outputs
                values = (stored.astype(np.float32) / np.float32(self.preparation.scale) - mean) / std
        if self.last and values.ndim == 4:
            values = values.transpose(0, 2, 3, 1)
        if values.ndim == len(self.shape) + 1 and values.shape[1] == 1:
            values = values[:, 0]
        return np.ascontiguousarray(values.astype(self.dtype, copy=False))


def feeding(
    kind: str,
    shape: Shape,
    stored: np.ndarray,
    metadata: Mapping[str, str],
    given: Preparation,
    *,
    where: str,
    data: str,
) -> Feeding:
    """Choose how stored values become inputs of a file.

    Args:
        kind: type of the input in ONNX Runtime, such as ``tensor(float)``.
        shape: of the input.
        stored: the data: images [N, C, H, W], features [N, F] or other arrays [N, ...].
        metadata: of the file.
        given: what the user says, which takes precedence.
        where: name of the file, for messages.
        data: name of the data, for messages.

    Raises:
        EvaluationError: If data and file do not fit together, or nothing says how bytes become numbers.
    """
    is_bytes, told = stored.dtype == np.uint8, stated(metadata, where)
    if kind == "tensor(uint8)":
        if not is_bytes:
            raise EvaluationError(f"{where} takes bytes, and {data} holds {stored.dtype}. Give the images as uint8.")
        if given.is_given:
            raise EvaluationError(f"{where} takes bytes and prepares them itself. Leave out --mean, --std and --scale.")
        found, dtype = None, np.uint8
    elif kind in WHOLE:
        if given.is_given or not np.issubdtype(stored.dtype, np.integer):
            raise EvaluationError(
                f"{where} takes whole numbers ({kind}), and {data} holds {stored.dtype}. Give whole numbers, without --mean, --std and "
                f"--scale."
            )
        found, dtype = None, WHOLE[kind]
    elif kind in FLOATS:
        found, dtype = _numbers(stored, is_bytes, told, given, where, data), FLOATS[kind]
    else:
        raise EvaluationError(f"{where} takes {kind}; files of numbers can be measured. Export it for float inputs.")
    last = _is_last(shape, stored, given.layout or metadata.get("layout"))
    made = Feeding(dtype, shape, found, last)
    channels = stored.shape[1] if stored.ndim > 1 else 1
    for name in ("mean", "std"):
        count = len(getattr(found, name)) if found else 1
        if count not in (1, channels):
            raise EvaluationError(
                f"{name} has {count} numbers, but the inputs of {data} have {channels} channels or features. Give one number for each, or "
                f"one for all."
            )
    example = made(stored[:1]).shape
    if len(example) != len(shape) or any(
        size not in (None, have) for size, have in zip(shape[1:], example[1:], strict=True)
    ):
        raise EvaluationError(
            f"{where} takes inputs {_shown(shape)}, and {data} gives {_shown((None, *example[1:]))}. Give the data that the file is for, "
            f"--image-size for encoded images, or --layout."
        )
    return made


def _numbers(
    stored: np.ndarray, is_bytes: bool, told: Preparation | None, given: Preparation, where: str, data: str
) -> Preparation | None:
    """Return the preparation for a file that takes floats, all numbers given; None: values go in as they are."""
    if given.is_given:
        base = told or Preparation((0.0,), (1.0,), 1.0)
        return Preparation(given.mean or base.mean, given.std or base.std, given.scale or base.scale)
    if told is not None:
        assert told.scale is not None
        if is_bytes != (told.scale == 255):
            raise EvaluationError(
                f"{where} was made for {'bytes' if told.scale == 255 else 'numbers that are no bytes'} (its scale is {told.scale:g}), "
                f"and {data} holds {stored.dtype}. Give data of that form, or say how they become inputs: --scale, --mean, --std."
            )
        return told
    if is_bytes:
        raise EvaluationError(
            f"{where} takes floats, {data} holds bytes, and the file does not say how bytes become inputs. Give --scale 255, or --scale, "
            f"--mean and --std as the model was trained: inputs are (stored / scale - mean) / std."
        )
    return None


def _is_last(shape: Shape, stored: np.ndarray, layout: str | None) -> bool:
    """Return whether the file wants channels last: as ``layout`` says, or as only one order fits the shape."""
    if layout is not None or stored.ndim != 4 or len(shape) != 4:
        return layout == "NHWC" and len(shape) == 4
    first, after = stored.shape[1:], (*stored.shape[2:], stored.shape[1])
    fits = [all(size in (None, have) for size, have in zip(shape[1:], order, strict=True)) for order in (first, after)]
    return fits == [False, True]


def _shown(shape: Shape) -> str:
    return f"[{', '.join('N' if size is None else str(size) for size in shape)}]"
