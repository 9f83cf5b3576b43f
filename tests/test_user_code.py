"""The user's own code is found, beside what it imports; what is missing is said with the nearest name."""

from __future__ import annotations

import sys

import pytest

from sparsify.errors import LoadError
from sparsify.user_code import find, split, within


def test_a_reference_is_split_at_its_last_colon():
    assert split("C:/my/file.py:build", gives="model") == ("C:/my/file.py", "build")
    for text in ("model", ":build", "file.py:"):
        with pytest.raises(LoadError, match=r"file\.py:factory"):
            split(text, gives="model")


def test_a_file_is_executed_anew_and_a_module_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "counted_file.py").write_text("def one(): return 1\n")
    (tmp_path / "counted_module.py").write_text("def one(): return 1\n")
    assert find("counted_file.py", "one") is not find("counted_file.py", "one")
    assert find("counted_module", "one") is find("counted_module", "one")


def test_within_lets_neighbours_be_imported_and_leaves_the_path_alone(tmp_path):
    before = list(sys.path)
    with within(str(tmp_path / "a.py")):
        assert sys.path == [*before, str(tmp_path)]
    assert sys.path == before


def test_the_nearest_name_is_said(tmp_path):
    (tmp_path / "near.py").write_text("def centralized(base): ...\n")
    with pytest.raises(LoadError, match=r"has no callable 'centralised'; it has centralized\. Nearest: centralized"):
        find(str(tmp_path / "near.py"), "centralised")
