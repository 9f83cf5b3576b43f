"""A file on the disk: its metadata, and a draft that gets its name once it is proved."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Mapping
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import helper

from sparsify.errors import ExportError
from sparsify.exporters.graphs import drop_weights
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


def write(
    file: Path, model: ir.Model, metadata: Mapping[str, str], baked: Preprocessing | None, *, sparse: bool = False
) -> None:
    """Write a graph with its metadata, what it computes from bytes, and who made it; the graph stays as it is."""
    final = model.clone()
    if baked is not None:
        baked.bake(final.graph)
    for node in final.graph.all_nodes():
        node.metadata_props.clear()
    final.metadata_props.clear()
    final.metadata_props.update(metadata)
    final.producer_name, final.producer_version = "sparsify", __version__
    versions = [helper.make_opsetid(domain, version) for domain, version in final.opset_imports.items()]
    final.ir_version = helper.find_min_ir_version_for(versions)
    try:
        check(final)
        write_to_disk(file, pieces(final, sparse=sparse))
    finally:
        drop_weights(final)


def add_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Add entries, whose keys the file does not have, to the metadata of a file, atomically; every other byte stays as it is."""
    if not metadata:
        return
    entries = [onnx.StringStringEntryProto(key=key, value=value) for key, value in metadata.items()]
    appended = onnx.ModelProto(metadata_props=entries).SerializeToString()  # protobuf joins repeated fields of parts
    with draft(path) as file:
        write_to_disk(file, [path.read_bytes(), appended])
        os.replace(file, path)


def check(model: ir.Model) -> None:
    """Check a graph against the rules of ONNX, without its weights: the runtime that proves a file reads those.

    Raises:
        ExportError: If a rule is broken.
    """
    try:
        onnx.checker.check_model(skeleton(model))
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"the graph of the file is not valid ONNX: {str(error).strip()[:300]} Please report it, with the model."
        ) from error
