"""A real archive of torch.export, and a way to forge it."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsify.loading import digits_cnn
from tests.cases import digits


def export_to(path: Path, model: nn.Module, *, dynamic: bool = True) -> Path:
    """Write the archive of a model of digits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim("n", min=1)},) if dynamic else None
        torch.export.save(torch.export.export(model, (digits(2)[0],), dynamic_shapes=shapes), path)
    return path


@pytest.fixture(scope="session")
def archive(tmp_path_factory) -> tuple[Path, nn.Module]:
    model = digits_cnn().eval()
    return export_to(tmp_path_factory.mktemp("exported") / "cnn.pt2", model), model


def changed(source: Path, target: Path, edit: Callable[[str, bytes], bytes | None]) -> Path:
    """A copy of an archive with each entry passed through ``edit(name, bytes) -> bytes``, or left out where it is None."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            content = edit(entry.filename.split("/", 1)[1], old.read(entry))
            if content is not None:
                new.writestr(entry.filename, content)
    return target
