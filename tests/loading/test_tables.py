"""CSV files as text: separators, quotes, headers; what is wrong with one is said with its line."""

from __future__ import annotations

import csv

import pytest

from sparsify.errors import DataError
from sparsify.loading import tables
from sparsify.loading.tables import read_table


def write(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_separators_are_found_and_quotes_are_read(tmp_path, delimiter):
    with (tmp_path / "d.csv").open("w", newline="") as file:
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerows([["name", "note, or not", "size"], ["a", 'says "a; b,\tc"', "1"], ["b", "two\nlines", " 2 "]])
    table = read_table(tmp_path / "d.csv")
    assert table.delimiter == delimiter
    assert table.columns == {
        "name": ["a", "b"], "note, or not": ['says "a; b,\tc"', "two\nlines"], "size": ["1", "2"],
    }  # fmt: skip
    assert table.lines == [2, 4] and table.where(1, "size") == f"{tmp_path / 'd.csv'}, line 4, column 'size'"


def test_marks_empty_lines_and_ends_of_lines(tmp_path):
    table = read_table(write(tmp_path / "d.csv", b"\xef\xbb\xbfa,b\r\n\r\n1,2\r\n\r\n3,4"))
    assert table.columns == {"a": ["1", "3"], "b": ["2", "4"]} and table.lines == [3, 5]


BAD = {
    "nothing": ("", "is empty"),
    "no rows": ("a,b\n", "has a header and no rows"),
    "one column": ("a\n1\n", "has a single column"),
    "no header": ("1.5,2\n3,4\n", r"has no header: its first line holds the number 1\.5\. Name the columns"),
    "a column without a name": ("a,,c\n1,2,3\n", "column 2 has no name"),
    "two names": ("a,b,a\n1,2,3\n", "two columns named 'a'"),
    "short row": ("a,b\n1,2\n3\n", r"line 3: 1 fields, but the header has 2 \(separated by commas"),
    "long row": ("a;b\n1;2;3\n", r"line 2: 3 fields, but the header has 2 \(separated by semicolons"),
    "open quote": ('a,b\n1,"2\n3,4\n', "line 3: unexpected end of data"),
    "text after a quote": ('a,b\n1,"2"x\n', "line 2: ',' expected after"),
    "not UTF-8": (b"a,b\n1,\xe9\n", "is not UTF-8 text, first at byte 6"),
    "null bytes": (b"a,b\n1,\x00\n", "null bytes"),
    "two separators": ("a,b;c\n1,2;3\n", "commas and semicolons split the first line into 2 fields each"),
    "a long field": ("a,b\n1," + "x" * 20_000 + "\n", "line 2, column 'b': 20,000 characters"),
    "columns": (",".join(f"c{i}" for i in range(10_001)) + "\n", "has 10,001 columns, more than 10,000"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tables(tmp_path, name):
    text, message = BAD[name]
    with pytest.raises(DataError, match=message):
        read_table(write(tmp_path / "d.csv", text))


def test_a_table_larger_than_memory_and_what_is_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "free_memory", lambda: 100)
    with pytest.raises(DataError, match="has 12 bytes, which take about 192 of memory as text, but only 100 are free"):
        read_table(write(tmp_path / "d.csv", "a,b\n1,2\n3,4\n"))
    with pytest.raises(DataError, match="there is no data file"):
        read_table(tmp_path / "absent.csv")
    (tmp_path / "link.csv").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="cannot read"):
        read_table(tmp_path / "link.csv")
