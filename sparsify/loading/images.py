"""Encoded images: decoded once and cached for archives, decoded a batch at a time for folders."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sparsify.errors import DataError
from sparsify.ir.serialization import write_atomically
from sparsify.parts.samples import Samples

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
HASHED = 1 << 14
"""Bytes of each file of a folder that its fingerprint reads."""
MEASURED = 2000
"""Images of a folder's training part from which mean and standard deviation are taken."""


def decode_all(blob: np.ndarray, offsets: np.ndarray, where: str) -> np.ndarray:
    """Decode images stored back to back.

    Args:
        blob: uint8, all files one after another.
        offsets: int, [N + 1], where each begins.
        where: for messages.

    Returns:
        uint8 [N, H, W, 3]. Kept in the cache folder, so that the next run starts at once; ``SPARSIFY_CACHE=off`` keeps nothing.

    Raises:
        DataError: If an image cannot be decoded, or their sizes differ.
    """
    data = blob.tobytes()
    if len(offsets) < 2 or offsets[0] < 0 or offsets[-1] > len(data) or (np.diff(offsets) <= 0).any():
        raise DataError(
            f"{where}: offsets should rise from 0 to the {len(data)} bytes of the images, one more than images."
        )
    cached = _cache_file(data, offsets)
    if cached is not None and cached.is_file():
        try:
            return np.load(cached, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            pass  # damaged: decoded and written again below

    def decode(index: int) -> np.ndarray:
        return _pixels(io.BytesIO(data[offsets[index] : offsets[index + 1]]), f"{where}: image {index}")

    with ThreadPoolExecutor() as pool:
        first = decode(0)
        images = np.empty((len(offsets) - 1, *first.shape), np.uint8)
        for index, image in enumerate(pool.map(decode, range(len(images)), chunksize=64)):
            if image.shape != first.shape:
                raise DataError(
                    f"{where}: image {index} has shape {image.shape}, the first {first.shape}; resize them to one."
                )
            images[index] = image
    if cached is not None:
        buffer = io.BytesIO()
        np.save(buffer, images)
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(cached, buffer.getvalue())
        except OSError:
            pass  # a cache that cannot be written costs time, not results
    return images


def samples_of_folder(folder: Path, *, size: int | None) -> dict[str, Samples]:
    """Samples of ``train/<class>/*``, ``test/<class>/*`` and, where it exists, ``val/<class>/*``; classes sorted by name.

    Args:
        folder: holds the parts.
        size: side in pixels to which images are resized; None: all must have one size.

    Raises:
        DataError: If a part, its classes or their images are missing, or an image cannot be read.
    """
    names = {"train": "train", "test": "test"} | ({"validation": "val"} if (folder / "val").is_dir() else {})
    for name in names.values():
        if not (folder / name).is_dir():
            raise DataError(f"{folder} has no folder {name}/. Images belong in {name}/<class>/.")
    classes = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
    if not classes:
        raise DataError(f"{folder / 'train'} holds no folders; every class is a folder of images.")
    files = {part: _listed(folder / name, classes) for part, name in names.items()}
    plain = ImageFiles(*files["train"], size=size)
    spread = torch.linspace(0, len(plain) - 1, min(len(plain), MEASURED)).long().unique()
    pixels, _ = plain.batch(spread)
    mean, std = pixels.double().mean(dim=(0, 2, 3)).float(), pixels.double().std(dim=(0, 2, 3)).clamp_min(1e-6).float()
    return {
        part: ImageFiles(*files[part], size=plain.size, mean=mean, std=std, resize=size is not None) for part in names
    }


class ImageFiles:
    """Images in files, decoded when fetched: RGB, [0, 1] or normalised, [B, 3, H, W].

    Args:
        paths: of the files.
        labels: as many.
        size: side to resize to, or (height, width) all must have; None: that of the first.
        mean, std: per channel.
        resize: whether images of another size are resized; None: where ``size`` is a side.
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
    ) -> None:
        self._paths, self.labels = list(paths), torch.tensor(labels, dtype=torch.int64)
        self._resize = isinstance(size, int) if resize is None else resize
        first = _pixels(self._paths[0], str(self._paths[0])).shape[:2] if size is None else size
        self.size: tuple[int, int] = (first, first) if isinstance(first, int) else (int(first[0]), int(first[1]))
        self._mean, self._std = mean, std

    def __len__(self) -> int:
        return len(self._paths)

    def batch(self, rows: Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        del seed
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(self._image, [self._paths[row] for row in rows.tolist()]))
        values = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        if self._mean is not None and self._std is not None:
            values = (values - self._mean.view(1, -1, 1, 1)) / self._std.view(1, -1, 1, 1)
        return values, self.labels[rows]

    def fingerprint(self) -> str:
        digest = hashlib.sha256(str((self.size, self.labels.tolist())).encode())
        for path in self._paths:
            digest.update(f"{path.parent.name}/{path.name} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                digest.update(file.read(HASHED))
        return digest.hexdigest()

    def _image(self, path: Path) -> np.ndarray:
        pixels = _pixels(path, str(path), self.size if self._resize else None)
        if pixels.shape[:2] != self.size:
            raise DataError(
                f"{path} is {pixels.shape[0]} x {pixels.shape[1]} pixels, the first image {self.size[0]} x {self.size[1]}. Give "
                f"image_size to resize them."
            )
        return pixels


def _listed(folder: Path, classes: Sequence[str]) -> tuple[list[Path], list[int]]:
    extra = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in classes)
    if extra:
        raise DataError(f"{folder} has the class {extra[0]!r}, which never occurs in training: {', '.join(classes)}.")
    found = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).glob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    if not found:
        raise DataError(
            f"{folder} holds no images; they belong in {folder}/<class>/ and end in {', '.join(sorted(SUFFIXES))}."
        )
    return [path for path, _ in found], [label for _, label in found]


def _pixels(source: io.BytesIO | Path, where: str, size: tuple[int, int] | None = None) -> np.ndarray:
    try:
        with Image.open(source) as image:
            rgb = image.convert("RGB")
    except Exception as error:
        raise DataError(
            f"{where} cannot be decoded: {error}. Use JPEG, PNG or WebP, and leave damaged files out."
        ) from error
    if size is not None and rgb.size != (size[1], size[0]):
        rgb = rgb.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def _cache_file(data: bytes, offsets: np.ndarray) -> Path | None:
    if os.environ.get("SPARSIFY_CACHE") == "off":
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(data)
    digest.update(np.ascontiguousarray(offsets).tobytes())
    return home / "sparsify" / f"images-{digest.hexdigest()}.npy"
