"""Only regular files of a bounded size are opened."""

from __future__ import annotations

import os

import pytest

from sparsify import runtime
from sparsify.errors import LoadError
from sparsify.runtime import open_file
from tests.evaluation.files import classifier


def test_a_file_is_opened(tmp_path):
    assert [value.name for value in open_file(classifier(tmp_path / "m.onnx"), threads=1).get_inputs()] == ["x"]


def test_what_is_no_file_or_too_large_is_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("x")
    for name, words in (
        ("none", "there is no file"),
        ("pipe", "a device or a pipe"),
        ("", "directory"),
        ("text", "cannot be opened"),
    ):
        with pytest.raises(LoadError, match=words):
            open_file(tmp_path / name)
    path = classifier(tmp_path / "m.onnx")
    monkeypatch.setattr(runtime, "LARGEST_FILE", 100)
    with pytest.raises(LoadError, match="an ONNX file in one part has fewer than 100"):
        open_file(path)
