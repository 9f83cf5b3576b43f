"""The user's own code: found, given its neighbours, and its failures told as such."""

from __future__ import annotations

import sys

import pytest

from sparsify.errors import LoadError
from sparsify.loading.factories import call_factory


def test_a_file_imports_what_lies_beside_it_and_leaves_the_path_alone(tmp_path):
    (tmp_path / "neighbour_of_mine.py").write_text("VALUE = 3\n")
    (tmp_path / "imports_neighbour.py").write_text(
        "def build():\n    import neighbour_of_mine\n    return neighbour_of_mine.VALUE\n"
    )
    before = list(sys.path)
    assert call_factory(f"{tmp_path / 'imports_neighbour.py'}:build", gives="model") == 3
    assert sys.path == before


def test_a_package_in_the_working_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "package_of_mine").mkdir()
    (tmp_path / "package_of_mine" / "__init__.py").write_text("def build(): return 4\n")
    monkeypatch.chdir(tmp_path)
    assert call_factory("package_of_mine:build", gives="model") == 4


BAD = {
    "raises": ("def build(): raise KeyError('a')", r"failed: KeyError: 'a' \(in build, .*bad_factory.py, line 1\)"),
    "exits": ("import sys\ndef build(): sys.exit(3)", "failed: SystemExit: 3"),
    "exits on import": ("import sys\nsys.exit(3)", "importing .* failed: SystemExit: 3"),
    "does not parse": ("def build(:", "importing .* failed: SyntaxError"),
    "imports what is not there": ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
    "wants arguments": ("def build(width): pass", "missing 1 required positional argument"),
    "has another name": ("def model(): pass", "has no callable 'build'; it has model"),
    "is no function": ("build = 3", "has no callable 'build'; it has none"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_factories(tmp_path, name):
    source, message = BAD[name]
    (tmp_path / "bad_factory.py").write_text(source)
    with pytest.raises(LoadError, match=message):
        call_factory(f"{tmp_path / 'bad_factory.py'}:build", gives="model")


def test_a_module_that_failed_is_not_kept(tmp_path):
    (tmp_path / "once_bad.py").write_text("import nowhere_at_all")
    with pytest.raises(LoadError):
        call_factory(f"{tmp_path / 'once_bad.py'}:build", gives="model")
    assert "once_bad" not in sys.modules
