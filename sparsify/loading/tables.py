"""Reads CSV files as text: a header, and columns of equal length. Ambiguous content is refused with its line, not guessed."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsify.errors import DataError
from sparsify.reading.arrays import free_memory
from sparsify.untrusted import regular_size

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
MOST_COLUMNS = 10_000
LONGEST_FIELD = 10_000
"""Largest number of characters in a field."""
UNPACKED = 16
"""Approximate number of bytes of memory per byte of the file, as Python text."""
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")


@dataclass(frozen=True)
class Table:
    """The text of a table.

    Attributes:
        path: path of the file.
        delimiter: character that separates fields.
        columns: fields of each column by name, without surrounding space.
        lines: for each row, the line of the file on which it ends, counted from 1.
    """

    path: Path
    delimiter: str
    columns: dict[str, list[str]]
    lines: list[int]

    def where(self, row: int, column: str) -> str:
        """Describe a place in the file, for messages."""
        return f"{self.path}, line {self.lines[row]}, column {column!r}"


def read_table(path: Path) -> Table:
    """Read a CSV file in UTF-8 with a header, and with quotes as Python's csv module reads them.

    Raises:
        DataError: If the file cannot be read, has no header, is too large, or a row has another number of fields than the header.
    """
    text = _text(path)
    delimiter = _delimiter(path, text)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: dict[str, list[str]] = {}
    lines: list[int] = []
    try:
        header = [name.strip() for name in next(rows)]
        _check_header(path, header, delimiter)
        columns = {name: [] for name in header}
        for row in rows:
            if not row:
                continue  # an empty line
            if len(row) != len(header):
                raise DataError(
                    f"{path}, line {rows.line_num}: {len(row)} fields, but the header has {len(header)} (separated by "
                    f"{DELIMITERS[delimiter]}). Quote fields that contain a separator, and complete truncated rows."
                )
            for name, value in zip(header, row, strict=True):
                if len(value) > LONGEST_FIELD:
                    raise DataError(
                        f"{path}, line {rows.line_num}, column {name!r}: {len(value):,} characters, more than {LONGEST_FIELD:,}. A quote "
                        f"may be missing, or leave the column out."
                    )
                columns[name].append(value.strip())
            lines.append(rows.line_num)
    except csv.Error as error:
        raise DataError(f'{path}, line {rows.line_num}: {error}. Quote fields as in "a ""quoted"" word".') from error
    if not lines:
        raise DataError(f"{path} has a header and no rows.")
    return Table(path, delimiter, columns, lines)


def _text(path: Path) -> str:
    try:
        size = regular_size(path)
        if size * UNPACKED > free_memory():
            raise DataError(
                f"{path} has {size:,} bytes, which take about {size * UNPACKED:,} of memory as text, but only {free_memory():,} are "
                f"free. Save the numbers with numpy.savez instead."
            )
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"there is no data file {path}. Check the path.") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text, first at byte {error.start}. Save it as CSV in UTF-8.") from error
    if "\0" in text:
        raise DataError(f"{path} holds null bytes, so it is not a text file. Save it as CSV in UTF-8.")
    if not text.strip():
        raise DataError(f"{path} is empty.")
    return text


def _delimiter(path: Path, text: str) -> str:
    """Return the separator that splits the header into the most fields.

    Raises:
        DataError: If no separator splits the header, or several split it into equally many fields.
    """
    widths: dict[str, int] = {}
    for delimiter in DELIMITERS:
        try:
            widths[delimiter] = len(next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)))
        except csv.Error:
            widths[delimiter] = 0
    best = max(widths.values())
    found = [delimiter for delimiter, width in widths.items() if width == best]
    if best < 2:
        raise DataError(
            f"{path} has a single column: its first line has no comma, semicolon or tab between fields. A table needs a target and at "
            f"least one other column."
        )
    if len(found) > 1:
        raise DataError(
            f"{path}: {' and '.join(DELIMITERS[d] for d in found)} split the first line into {best} fields each, so the separator is "
            f"ambiguous. Quote the column names."
        )
    return found[0]


def _check_header(path: Path, header: Sequence[str], delimiter: str) -> None:
    if len(header) > MOST_COLUMNS:
        raise DataError(
            f"{path} has {len(header):,} columns, more than {MOST_COLUMNS:,}. Save the numbers with numpy.savez."
        )
    for place, name in enumerate(header):
        if not name:
            raise DataError(f"{path}: column {place + 1} has no name. Name every column in the first line.")
        if number(name) is not None:
            raise DataError(
                f"{path} has no header: its first line holds the number {name}. Name the columns in the first line, with "
                f"{DELIMITERS[delimiter]} between the names."
            )
        if name in header[:place]:
            raise DataError(f"{path} has two columns named {name!r}. Give each its own name.")


def number(text: str) -> float | None:
    """Parse the number in a field, including NaN and infinity; None if the field is not a number."""
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None
