"""Images in folders, decoded when a batch is fetched."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsify.errors import DataError
from sparsify.parts.samples import Batch, Samples
from sparsify.reading.folders import FOLDERS, class_folders, listed
from sparsify.reading.images import MEASURED, sized
from sparsify.reading.pixels import Channels, channels_of, decoded

HASHED = 1 << 14
"""Number of bytes of each file in a folder that go into the fingerprint."""


def samples_of_folder(
    folder: Path,
    *,
    size: int | None,
    normalise: bool = True,
    channels: Channels = "auto",
    statistics: tuple[Tensor, Tensor] | None = None,
) -> tuple[dict[str, Samples], tuple[str, ...]]:
    """Read samples of ``train/<class>/*`` and, if they exist, ``val/<class>/*`` and ``test/<class>/*``; also returns the sorted classes.

    Args:
        folder: folder with the parts.
        size: side in pixels to which images are resized; None: all images must have the same size.
        normalise: normalise images per channel by `MEASURED` images of the training part.
        channels: ``rgb``, ``grey``, or ``auto``, which is grey if these `MEASURED` images all are.
        statistics: mean and std to use instead of the training part's: one number per channel, or one for all.

    Raises:
        DataError: If a part, its classes or their images are missing, or an image cannot be read.
    """
    names = {part: name for part, name in FOLDERS.items() if part == "train" or (folder / name).is_dir()}
    if not (folder / "train").is_dir():
        raise DataError(f"{folder} has no folder train/. Images belong in train/<class>/ and test/<class>/.")
    classes = class_folders(folder / "train")
    files = {part: listed(folder / name, classes, empty=part == "train") for part, name in names.items()}
    paths = files["train"][0]
    measured = torch.linspace(0, len(paths) - 1, min(len(paths), MEASURED)).long().unique()
    planes = channels_of(channels, (paths[row] for row in measured.tolist()))
    strict = channels == "auto"
    plain = ImageFiles(*files["train"], size=size, channels=planes, strict=strict)
    mean = std = None
    if statistics is not None:
        for name, value in zip(("mean", "std"), statistics, strict=True):
            if len(value) not in (1, planes):
                raise DataError(
                    f"{folder}: {name} has {len(value)} numbers, but the images have {planes} channels. Give one number per "
                    f"channel, or one for all."
                )
        mean, std = (value.expand(planes).clone() for value in statistics)
    elif normalise:
        sums = [torch.zeros(planes, dtype=torch.float64) for _ in range(2)]
        for rows in measured.split(64):
            pixels = plain.batch(rows)[0].double()
            sums = [sums[0] + pixels.mean(dim=(2, 3)).sum(0), sums[1] + (pixels**2).mean(dim=(2, 3)).sum(0)]
        mean, square = (value / len(measured) for value in sums)
        std = (square - mean**2).clamp_min(0).sqrt().clamp_min(1e-6).float()
        mean = mean.float()
    parts: dict[str, Samples] = {
        part: ImageFiles(
            *files[part],
            size=plain.size,
            mean=mean,
            std=std,
            resize=size is not None,
            channels=planes,
            strict=strict,
        )
        for part in names
    }
    return parts, tuple(classes)


class ImageFiles:
    """Images in files, decoded when fetched: RGB or grey, [0, 1] or normalised, [B, C, H, W].

    Args:
        paths: paths of the files.
        labels: class number of each file.
        size: side to resize to, or (height, width) that all images must have; None: the size of the first image.
        mean, std: numbers per channel to normalise by; None: images stay in [0, 1].
        resize: whether images of another size are resized; None: only if ``size`` is a side.
        channels: 3 or 1.
        strict: if ``channels`` is 1, refuse images with colour instead of making them grey.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int],
        *,
        size: int | tuple[int, int] | None,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        resize: bool | None = None,
        channels: int = 3,
        strict: bool = False,
    ) -> None:
        self._paths, self.targets = list(paths), torch.tensor(labels, dtype=torch.int64)
        self._channels, self._strict = channels, strict
        self._resize = isinstance(size, int) if resize is None else resize
        first = decoded(self._paths[0], str(self._paths[0])).shape[:2] if size is None else size
        self.size: tuple[int, int] = (first, first) if isinstance(first, int) else (int(first[0]), int(first[1]))
        self.mean, self.std = mean, std

    def __len__(self) -> int:
        return len(self._paths)

    def batch(self, rows: Tensor, *, seed: int = 0) -> Batch:
        del seed
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(self._image, [self._paths[row] for row in rows.tolist()]))
        values = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        if self.mean is not None and self.std is not None:
            values = (values - self.mean.view(1, -1, 1, 1)) / self.std.view(1, -1, 1, 1)
        return Batch(values, self.targets[rows])

    def fingerprint(self) -> str:
        form = (self.size, self.targets.tolist(), *([1] if self._channels == 1 else []))
        digest = hashlib.sha256(str(form).encode())
        for path in self._paths:
            digest.update(f"{path.parent.name}/{path.name} {path.stat().st_size}\n".encode(errors="surrogateescape"))
            with path.open("rb") as file:
                digest.update(file.read(HASHED))
        return digest.hexdigest()

    def _image(self, path: Path) -> np.ndarray:
        pixels = decoded(
            path, str(path), self.size if self._resize else None, channels=self._channels, strict=self._strict
        )
        if pixels.shape[:2] != self.size:
            raise DataError(
                f"{path} is {sized(pixels)} pixels, the first image {self.size[0]} x {self.size[1]}. Give image_size to resize them."
            )
        return pixels
