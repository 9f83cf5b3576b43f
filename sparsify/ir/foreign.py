"""Text of files that someone else may have made: JSON of bounded depth and numbers, names that are safe in generated Python.

torch.fx writes names of nodes, of arguments and of state into the Python source of a graph as they are, so a name from a file has to be a
name and nothing more. JSON has no limits of its own: one line of brackets exhausts the stack, one number of a million digits the time.
"""

from __future__ import annotations

import errno
import json
import keyword
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, NoReturn

LARGEST_DOCUMENT = 32 << 20
"""Bytes of a JSON document; as Python objects it takes up to 30 times as much."""
DEEPEST = 100
"""Levels of nesting."""
INTEGERS = range(-(2**63), 2**63)
LONGEST_TEXT = 1000
TAKEN = frozenset({"self", "torch", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree"})
"""Names that the source of a graph uses for something else."""


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    """The value of a JSON document.

    Args:
        text: at most `LARGEST_DOCUMENT` bytes of it.
        finite: refuse NaN and infinite numbers.

    Raises:
        ValueError: If it is no JSON, or is too large, nested too deeply, or holds a number that no file of this package has.
    """
    if len(text) > LARGEST_DOCUMENT:
        raise ValueError(f"it has {len(text):,} bytes of JSON, more than {LARGEST_DOCUMENT:,}")

    def number(digits: str) -> float:
        value = float(digits)
        if finite and not math.isfinite(value):
            _refuse_number(digits)
        return value

    try:
        value = json.loads(
            text, parse_int=_integer, parse_float=number, parse_constant=_refuse_number if finite else None
        )
    except RecursionError as error:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep") from error
    level, depth = [value], 0
    while level:
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")
        inner = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list))]
        level, depth = [item for items in inner for item in items], depth + 1
    return value


def read_json(path: Path, *, finite: bool = True) -> Any:
    """The value of a JSON file; no more than `LARGEST_DOCUMENT` bytes of it are read.

    Raises:
        OSError: If the file cannot be read, or is no regular file.
        ValueError: As `parse_json`, and where the file is not UTF-8.
    """
    return parse_json(read_text(path), finite=finite)


def read_text(path: Path, *, largest: int = LARGEST_DOCUMENT) -> str:
    """The text of a regular file of at most ``largest`` bytes.

    Raises:
        OSError: If the file cannot be read, or is no regular file (a link to a device or a pipe would be read for ever).
        ValueError: If it is larger, or not UTF-8.
    """
    regular_size(path)
    with path.open("rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"it is larger than {largest:,} bytes")
    return content.decode()


def regular_size(path: Path) -> int:
    """Bytes of a regular file, or of the one that a link leads to.

    Raises:
        OSError: If there is none, or it is a folder, a device or a pipe, which would be read for ever.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a device or a pipe, not a file", str(path))
    return status.st_size


def _integer(digits: str) -> int:
    if len(digits) > 20 or int(digits) not in INTEGERS:
        _refuse_number(digits)
    return int(digits)


def _refuse_number(digits: str) -> NoReturn:
    raise ValueError(
        f"it holds the number {digits[:30]}{'...' * (len(digits) > 30)}, which is not finite or has more than 64 bits"
    )


def checked_keyword(text: str) -> str:
    """The name of an argument of an operator.

    Raises:
        ValueError: If it is not one.
    """
    if not text.isidentifier() or keyword.iskeyword(text) or len(text) > LONGEST_TEXT:
        raise ValueError(f"{text[:80]!r} is no name")
    return text


def checked_identifier(text: str) -> str:
    """The name of a node or of an input.

    Raises:
        ValueError: If it is not one.
    """
    if checked_keyword(text) in TAKEN or text.startswith("__"):
        raise ValueError(f"{text[:80]!r} is a name that the graph needs for itself")
    return text


def checked_path(text: str) -> str:
    """The qualified name of a parameter, a buffer or a submodule.

    Raises:
        ValueError: If a part of it is empty, or could end the quotes it is written in, or is a name of Python's own.
    """
    for part in text.split("."):
        if not part or part.startswith("__") or not part.isprintable() or re.search(r"[\"'\\{}]", part):
            raise ValueError(f"{text[:80]!r} is no qualified name")
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"the name {text[:80]!r}... is longer than {LONGEST_TEXT} characters")
    return text


def checked_text(text: str) -> str:
    """A text that is shown and used as a key.

    Raises:
        ValueError: If it is too long or holds control characters.
    """
    if len(text) > LONGEST_TEXT or not text.isprintable():
        raise ValueError(
            f"the text {text[:80]!r} is longer than {LONGEST_TEXT} characters, or holds control characters"
        )
    return text


def is_plain_structure(text: str, keys: re.Pattern[str]) -> bool:
    """Whether a text describes nested inputs or outputs whose contexts are plain keys.

    The reader of torch imports the module that a context names as the home of an enum or of a default factory.

    Args:
        text: what `torch.utils._pytree.treespec_dumps` writes.
        keys: what the names of types, and keys that are text, must match.
    """
    try:
        version, tree = parse_json(text)
        nodes = [tree]
        while nodes:
            node = nodes.pop()
            context = node["context"]
            found = parse_json(context) if isinstance(context, str) else context
            found = found if isinstance(found, list) else [found]
            if not all(k is None or isinstance(k, int) or (isinstance(k, str) and keys.fullmatch(k)) for k in found):
                return False
            if not (node["type"] is None or keys.fullmatch(node["type"])):
                return False
            nodes.extend(node["children_spec"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return False
    return version == 1
