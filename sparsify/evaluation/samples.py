"""The samples that a file is measured on, as arrays."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparsify.errors import DataError, EvaluationError
from sparsify.evaluation.feeding import Shape
from sparsify.evaluation.model_file import ModelFile
from sparsify.reading.arrays import PARTS, Arrays, checked_array, read_part
from sparsify.reading.digits import digits_arrays
from sparsify.reading.folders import read_folder_part
from sparsify.reading.images import Progress
from sparsify.reading.ood import ood_array
from sparsify.reading.pixels import Channels
from sparsify.reading.targets import class_numbers, numbers


@dataclass(frozen=True)
class Samples:
    """Samples with their targets.

    Attributes:
        name: what the user called the data.
        part: ``train``, ``validation`` or ``test``.
        inputs: as stored: images [N, C, H, W], or other arrays [N, ...].
        targets: class numbers int64 [N], or numbers [N, ...].
        class_names: names of the classes, if the data hold them.
    """

    name: str
    part: str
    inputs: np.ndarray
    targets: np.ndarray
    class_names: tuple[str, ...] | None

    def fingerprint(self) -> str:
        """Compute a SHA-256 of inputs and targets."""
        digest = hashlib.sha256(str((self.inputs.dtype, self.inputs.shape, self.targets.dtype)).encode())
        for start in range(0, len(self.inputs), 4096):
            digest.update(np.ascontiguousarray(self.inputs[start : start + 4096]).tobytes())
        digest.update(np.ascontiguousarray(self.targets).tobytes())
        return digest.hexdigest()


def read_samples(
    text: str,
    model: ModelFile,
    *,
    part: str = "test",
    image_size: int | None = None,
    on_progress: Progress | None = None,
) -> Samples:
    """Read the samples of one part that fit a file.

    Args:
        text: ``digits``, or an .npz file or a folder of images as `sparsify run` reads them.
        model: the file.
        part: ``test``, ``validation`` or ``train``.
        image_size: side in pixels to which encoded images are resized.
        on_progress: called while encoded images are decoded.

    Raises:
        DataError: If the data are missing, malformed, or lack the part.
        EvaluationError: If the part is unknown, or targets do not fit the task of the file.
    """
    if part not in PARTS:
        raise EvaluationError(f"part should be one of {', '.join(PARTS)}, found {part!r}.")
    arrays = _arrays(text, part, model, image_size, on_progress)
    whole = model.input_kind.startswith("tensor(int")
    inputs = checked_array(text, f"x_{part}", arrays[f"x_{part}"], not whole)
    where, given = f"{text}: y_{part}", np.asarray(arrays[f"y_{part}"])
    targets = class_numbers(given, where) if model.task == "classification" else numbers(given, where)
    if len(targets) != len(inputs):
        raise DataError(
            f"{text}: x_{part} has {len(inputs)} samples, y_{part} has {len(targets)}. Give one target per sample."
        )
    names = arrays.get("class_names")
    return Samples(text, part, inputs, targets, None if names is None else tuple(map(str, names.ravel())))


def _arrays(text: str, part: str, model: ModelFile, size: int | None, on_progress: Progress | None) -> Arrays:
    if text == "digits":
        found = digits_arrays()
        if f"x_{part}" not in found or size is not None:
            raise DataError("digits has the parts train and test, and no images to resize.")
        return found
    path, channels = Path(text), _channels(model.input_shape)
    if path.is_dir():
        if model.task != "classification":
            raise EvaluationError(
                f"the folders of images in {text} are classes, and {model.path} is for {model.task}. Give an .npz file with x_{part} and "
                f"y_{part}."
            )
        return read_folder_part(
            path, part, classes=model.classes, size=size, channels=channels, on_progress=on_progress
        )
    if path.suffix.lower() != ".npz":
        raise DataError(
            f"a file is measured on an .npz file, a folder of images, or on 'digits', found {text!r}. Save the prepared samples with "
            f"numpy.savez, as x_{part} and y_{part}."
        )
    return read_part(path, part, size=size, channels=channels, on_progress=on_progress)


def _channels(shape: Shape) -> Channels:
    """Return how encoded images are read for an input of this shape."""
    grey, colour = (
        [size for size in (shape[1], shape[-1]) if size == count] if len(shape) == 4 else [] for count in (1, 3)
    )
    return "grey" if grey and not colour else "rgb" if colour and not grey else "auto"


def read_outside(text: str, samples: Samples, *, on_progress: Progress | None = None) -> np.ndarray:
    """Read out-of-distribution inputs in the form of the samples, see `sparsify.reading.ood.ood_array`.

    Raises:
        DataError: If they are missing or damaged, or cannot take the form of the samples.
    """
    shape = samples.inputs.shape[1:]
    images = samples.inputs.dtype != np.int64
    found = checked_array(text, "x_test", ood_array(text, shape, on_progress), images)
    if found.shape[1:] != shape:
        raise DataError(
            f"{text}: inputs have shape {list(found.shape[1:])}, but those of {samples.name} have {list(shape)}. Give encoded images, "
            f"which are resized, or arrays of that shape."
        )
    if (found.dtype == np.uint8) != (samples.inputs.dtype == np.uint8):
        raise DataError(
            f"{text}: inputs are {found.dtype}, but those of {samples.name} {samples.inputs.dtype}, so their scales may differ. Give both "
            f"as uint8 images, or both as floats on the same scale."
        )
    return found
