"""Checkpoints: one file, written atomically, readable with ``weights_only=True``."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sparsify.errors import CheckpointError
from sparsify.ir.serialization import write_atomically

FORMAT = 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` (tensors, numbers, text, lists, dicts) to ``path``; the file appears whole or not at all."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote.

    Raises:
        CheckpointError: If the file is missing, damaged, of another format, or holds anything but plain data.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}. Start the run without --resume.")
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        known = isinstance(content, dict) and content.get("format") == FORMAT
    except Exception as error:
        raise CheckpointError(
            f"the checkpoint {path} is damaged ({type(error).__name__}). Delete it, or run again with --overwrite."
        ) from error
    if not known:
        raise CheckpointError(f"{path} is not a checkpoint of this version. Run again with --overwrite.")
    return content


def placed(content: Any, device: torch.device) -> Any:
    """Saved content with its tensors, in whatever dicts, lists and tuples, on ``device``; a checkpoint is read to the CPU."""
    return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, content)
