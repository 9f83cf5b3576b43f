"""Checkpoints: one file, written atomically, readable with ``weights_only=True``."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sparsify.errors import CheckpointError
from sparsify.files import write_atomically

FORMAT = 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` (tensors, numbers, text, lists, dicts) to ``path``; the file appears whole or not at all."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "form": form(content), **content}, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote.

    Raises:
        CheckpointError: If the file is missing, damaged, of another format, or holds anything but plain data.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}. Start the run without --resume.")
    try:
        _check_size(path)
        content = torch.load(path, weights_only=True, map_location="cpu")
        known = isinstance(content, dict) and content.pop("format", None) == FORMAT
        whole = known and content.pop("form", None) == form(content)
    except Exception as error:
        raise CheckpointError(
            f"the checkpoint {path} is damaged ({type(error).__name__}: {str(error)[:200]}). Delete it, or run again with --overwrite."
        ) from error
    if not known:
        raise CheckpointError(f"{path} is not a checkpoint of this version. Run again with --overwrite.")
    if not whole:
        raise CheckpointError(
            f"the checkpoint {path} is not what was saved: an entry was changed or is missing. Delete it, or run again with --overwrite."
        )
    return content


def form(content: Any) -> str:
    """Compute a digest of nested content: keys, types, numbers, text, and dtypes and shapes of tensors, but not their values."""
    digest = hashlib.sha256()

    def take(value: Any) -> None:
        if isinstance(value, Tensor):
            digest.update(f"T{value.dtype}{list(value.shape)};".encode())
        elif isinstance(value, dict):
            digest.update(f"D{len(value)};".encode())
            for key, inner in value.items():
                take(key)
                take(inner)
        elif isinstance(value, (list, tuple)):
            digest.update(f"{type(value).__name__}{len(value)};".encode())
            for inner in value:
                take(inner)
        else:
            digest.update(f"{type(value).__name__}{value!r};".encode(errors="surrogatepass"))

    take(content)
    return digest.hexdigest()


def _check_size(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError("it unpacks to more bytes than the file has")


def placed(content: Any, device: torch.device) -> Any:
    """Move all tensors in nested saved content to ``device``; a checkpoint is read to the CPU first."""
    return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, content)
