"""From text to a model and its data. Nothing that could execute unpickled code is read."""

from __future__ import annotations

import importlib
import importlib.util
import io
import itertools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from sparsify.errors import DataError, LoadError


@dataclass(frozen=True)
class Data:
    """Inputs [N, C, H, W] float32, normalised per channel, and int64 labels; validation is held out of the training part.

    Attributes:
        train, validation, test: (inputs, labels).
        classes: number of classes, from all labels.
        mean, std: per channel, of the training part's [0, 1] values.
    """

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def digits_cnn() -> nn.Module:
    """The small CNN of the embedded digits job: 8x8 images, 10 classes."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 16, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def load_model(text: str) -> nn.Module:
    """A model from ``file.py:factory`` or ``package.module:factory``; the factory takes no arguments.

    Raises:
        LoadError: If the file, module or factory is missing, fails, or returns no module.
    """
    factory = _factory(text)
    try:
        model = factory()
    except Exception as error:
        raise LoadError(
            f"the factory {text!r} failed: {type(error).__name__}: {error}. It is called without arguments."
        ) from error
    if not isinstance(model, nn.Module):
        raise LoadError(f"the factory {text!r} returned {type(model).__name__}; it should return a torch.nn.Module.")
    return model


def load_data(text: str, *, seed: int, holdout: float = 0.15) -> Data:
    """Data from ``digits``, ``digits`` being embedded, or ``file.npz``.

    An npz holds ``x_train, y_train, x_test, y_test`` (uint8 images [N, H, W] or [N, H, W, C], or float32 arrays), or encoded
    images as ``images_train`` (bytes), ``offsets_train``, ``y_train`` and the same for test.

    Args:
        text: which data.
        seed: of the stratified hold-out.
        holdout: fraction of the training part kept for validation and calibration.

    Raises:
        DataError: If the data are missing, malformed or unusable; the message says what to do.
    """
    if text == "digits":
        images, target = load_digits(return_X_y=True)
        x_train, x_test, y_train, y_test = train_test_split(
            (images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8),
            target,
            test_size=360,
            random_state=0,
            stratify=target,
        )
        arrays: dict[str, np.ndarray] = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    else:
        arrays = _read_npz(Path(text))
    return _split(text, arrays, seed=seed, holdout=holdout)


def _factory(text: str) -> Callable[[], object]:
    where, colon, name = text.rpartition(":")
    if not colon or not where or not name:
        raise LoadError(f"the model {text!r} should be written file.py:factory or package.module:factory.")
    try:
        if where.endswith(".py"):
            path = Path(where)
            if not path.is_file():
                raise LoadError(f"there is no file {where}. Check the path of {text!r}.")
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec and spec.loader
            module = importlib.util.module_from_spec(spec)
            sys.modules.setdefault(path.stem, module)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
    except LoadError:
        raise
    except Exception as error:
        raise LoadError(f"importing {where} failed: {type(error).__name__}: {error}.") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        names = sorted(k for k, v in vars(module).items() if callable(v) and not k.startswith("_"))
        raise LoadError(f"{where} has no callable {name!r}; it has {', '.join(names) or 'none'}.")
    return factory


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"there is no data file {path}. Give 'digits' or the path of an .npz file.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as .npz without unpickling ({type(error).__name__}: {error}). "
            f"Save plain arrays with numpy.savez."
        ) from error
    for part in ("train", "test"):
        if f"images_{part}" in arrays and f"offsets_{part}" in arrays:
            arrays[f"x_{part}"] = _decode(arrays[f"images_{part}"], arrays[f"offsets_{part}"], path)
    missing = [name for name in ("x_train", "y_train", "x_test", "y_test") if name not in arrays]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(sorted(arrays))}.")
    return arrays


def _decode(blob: np.ndarray, offsets: np.ndarray, path: Path) -> np.ndarray:
    data = blob.tobytes()
    try:
        images = [np.asarray(Image.open(io.BytesIO(data[a:b])).convert("RGB")) for a, b in itertools.pairwise(offsets)]
    except Exception as error:
        raise DataError(
            f"{path} holds an image that cannot be decoded: {error}. Encode images as JPEG, PNG or WebP."
        ) from error
    if len({image.shape for image in images}) != 1:
        raise DataError(f"the images of {path} have different sizes; resize them to one.")
    return np.stack(images)


def _split(text: str, arrays: Mapping[str, np.ndarray], *, seed: int, holdout: float) -> Data:
    parts = {part: _checked(text, part, arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test")}
    (x, y), (x_test, y_test) = parts["train"], parts["test"]
    if x.shape[1:] != x_test.shape[1:]:
        raise DataError(f"{text}: training inputs have shape {x.shape[1:]}, test inputs {x_test.shape[1:]}.")
    counts = np.bincount(y)
    if (counts > 0).sum() < 2:
        raise DataError(f"{text}: all training labels are {y[0]}; a classifier needs at least two classes.")
    if y_test.max() >= len(counts):
        raise DataError(
            f"{text}: test label {y_test.max()} never occurs in training, whose labels are 0 to {len(counts) - 1}."
        )
    if len(y) < 4:
        raise DataError(f"{text}: {len(y)} training samples cannot be split into training and validation parts.")
    present = counts[counts > 0]
    held_count = max(1, round(holdout * len(y)))
    splits_evenly = present.min() >= 2 and held_count >= len(present)
    fit, held = train_test_split(
        np.arange(len(y)), test_size=held_count, random_state=seed, stratify=y if splits_evenly else None
    )
    fit.sort()
    held.sort()
    mean = x[fit].mean(axis=(0, 2, 3), dtype=np.float64)
    std = np.maximum(x[fit].std(axis=(0, 2, 3), dtype=np.float64), 1e-6)

    def ready(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
        shaped = (images - mean[None, :, None, None]) / std[None, :, None, None]
        return torch.from_numpy(shaped.astype(np.float32)), torch.from_numpy(labels.astype(np.int64))

    return Data(
        train=ready(x[fit], y[fit]),
        validation=ready(x[held], y[held]),
        test=ready(x_test, y_test),
        classes=len(counts),
        mean=tuple(float(m) for m in mean),
        std=tuple(float(s) for s in std),
    )


def _checked(text: str, part: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(x) == 0:
        raise DataError(f"{text}: x_{part} is empty.")
    if y.ndim != 1 or len(x) != len(y):
        raise DataError(
            f"{text}: x_{part} has {len(x)} samples, y_{part} has shape {list(y.shape)}; they should be as many."
        )
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
        raise DataError(f"{text}: y_{part} should hold whole numbers from 0, found {y.dtype} from {y.min()}.")
    if not np.isfinite(x).all():
        raise DataError(f"{text}: x_{part} holds NaN or infinity. Clean the data first.")
    scaled = x.astype(np.float32) / 255 if x.dtype == np.uint8 else x.astype(np.float32)
    if scaled.ndim == 3:
        scaled = scaled[:, None]
    elif scaled.ndim == 4 and scaled.shape[-1] in (1, 3) and scaled.shape[1] not in (1, 3):
        scaled = scaled.transpose(0, 3, 1, 2)
    if scaled.ndim != 4:
        raise DataError(
            f"{text}: x_{part} has shape {list(x.shape)}; images are [N, H, W], [N, H, W, C] or [N, C, H, W]."
        )
    return np.ascontiguousarray(scaled), y
