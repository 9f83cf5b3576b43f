"""JSON has bounds: depth, digits, bytes; devices, pipes and folders are not read."""

from __future__ import annotations

import os

import pytest

from sparsify.untrusted import DEEPEST, parse_json, read_json, regular_size


@pytest.mark.parametrize("text", [
    "[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), "[" * 10**6, '{"a":' * 10**5, "9" * 5000, str(2**63), "-" + "1" * 20, "NaN", "[Infinity]",
    "1e999", "{", b"\xff\xfe", " " * (33 << 20), '"\\ud800' + "x" * 10, "",
])  # fmt: skip
def test_a_document_without_bounds_is_refused(text):
    with pytest.raises(ValueError):
        parse_json(text)


def test_what_is_within_bounds_is_what_json_says():
    assert parse_json('{"a": [1, -2.5e3, true, null, "x"], "b": {}}') == {"a": [1, -2500.0, True, None, "x"], "b": {}}
    assert parse_json(str(2**63 - 1)) == 2**63 - 1 and parse_json(f"-{2**63}") == -(2**63)
    deep = parse_json("[" * DEEPEST + "]" * DEEPEST)
    assert deep and parse_json("[NaN]", finite=False)[0] != 0


def test_devices_pipes_and_folders_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "link", tmp_path, tmp_path / "none"):
        with pytest.raises(OSError):
            read_json(path)
    (tmp_path / "a.json").write_bytes(b"\xff")
    assert regular_size(tmp_path / "a.json") == 1
    with pytest.raises(ValueError):
        read_json(tmp_path / "a.json")
