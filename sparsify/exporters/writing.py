"""A file on the disk: its metadata, and a draft that gets its name once it is proved."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from pathlib import Path

import onnx
from onnx import helper

from sparsify.errors import ExportError
from sparsify.exporters.preprocessing import Preprocessing
from sparsify.exporters.skeleton import skeleton
from sparsify.exporters.wire import pieces
from sparsify.files import unfinished, write_to_disk
from sparsify.version import __version__


class UnwritableError(ExportError):
    """No form of the file could be written."""


@contextlib.contextmanager
def draft(path: Path) -> Generator[Path]:
    """A file beside ``path`` to write, prove and rename; it is gone after the block.

    Raises:
        UnwritableError: If it cannot be written.
    """
    try:
        with unfinished(path) as file:
            yield file
    except OSError as error:
        raise UnwritableError(
            f"cannot write {path}: {error.strerror}. Choose a writable folder with enough space."
        ) from error


def write(file: Path, model: onnx.ModelProto, metadata: Mapping[str, str], baked: Preprocessing | None) -> None:
    """Finish a graph in place and write it: its metadata, what it computes from bytes, who made it."""
    if baked is not None:
        baked.bake(model)
    for node in model.graph.node:
        del node.metadata_props[:]
    del model.metadata_props[:]
    for key, value in sorted(metadata.items()):
        model.metadata_props.add(key=key, value=value)
    model.producer_name, model.producer_version = "sparsify", __version__
    model.ir_version = helper.find_min_ir_version_for(model.opset_import)
    onnx.checker.check_model(skeleton(model))  # the runtime that proves the file reads its weights
    write_to_disk(file, pieces(model))
