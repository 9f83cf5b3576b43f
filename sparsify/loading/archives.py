"""Filters a ``.pt2`` archive before torch reads it: only plain data under known names may pass.

``torch.export.load`` unpickles parts of an archive, looks operators up by dotted names, writes names unescaped into the Python source it
generates, imports modules that a structure of inputs names, and evaluates shape expressions as Python. Therefore each part, each string
and each name of an archive is refused unless a rule here allows it. The copy that torch reads leaves out three things: the sample inputs
(a pickle), guard code, and the metadata of nodes except the modules that they came from.
"""

from __future__ import annotations

import ast
import io
import json
import keyword
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from sparsify.errors import LoadError
from sparsify.ir.foreign import is_plain_structure
from sparsify.ir.operators import aten_operator
from sparsify.untrusted import parse_json, regular_size

PARTS = re.compile(
    r"(models/\w+\.json|data/(weights|constants)/(\w+|\w+_config\.json)|data/sample_inputs/\w+\.pt|archive_format|archive_version"
    r"|byteorder|\.data/\w+|version)"
)
ARITHMETIC = re.compile(
    r"torch\.sym_(max|min|not|float|int)|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_)"
)
"""Operators on sizes; all other operators must be in `sparsify.ir.operators`."""
FUNCTIONS = re.compile(
    r"Symbol|Integer|Rational|Float|Add|Mul|Pow|PowByNatural|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|"
    r"CleanDiv|ModularIndexing|Where|Eq|Ne|Equality|Unequality|And|Or|Not|StrictLessThan|LessThan|"
    r"StrictGreaterThan|GreaterThan|IntTrueDiv|FloatTrueDiv|ToFloat|TruncToInt|CeilToInt|FloorToInt|"
    r"RoundToInt|Identity"
)
"""Functions that a shape expression may call; they only build symbols and numbers."""
LONGEST_EXPRESSION, HIGHEST_POWER = 4000, 8
NAMES = frozenset({"name", "as_name", "forward_arg_names"})
"""Keys of names that torch writes into Python source."""
PLAIN = re.compile(r"[\w.@+\-]*( [\w.@+\-]+)*")
"""Qualified names, types, devices, versions."""
TEXT = re.compile(r"[\w .,:;@+\-<>=/]*")
"""Arguments of operators (``floor``, ``bij,bjk->bik``) and the modules that a node came from."""


def sanitised(path: Path) -> bytes:
    """Return the bytes of the archive at ``path`` without the parts that torch does not need.

    Raises:
        LoadError: If the file is missing, is not such an archive, or contains anything that no rule allows.
    """
    buffer = io.BytesIO()
    seen: set[str] = set()
    try:
        size = regular_size(path)
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(buffer, "w") as copy:
            for entry in archive.infolist():
                name = entry.filename.partition("/")[2]
                if (
                    not PARTS.fullmatch(name)
                    or name in seen
                    or entry.compress_type != zipfile.ZIP_STORED
                    or entry.file_size > size
                ):
                    _refuse(
                        path, f"the part {entry.filename[:80]!r}, which torch.export.save does not write in this form"
                    )
                seen.add(name)
                copy.writestr(zipfile.ZipInfo(entry.filename), _part(path, name, archive.read(entry)))
    except FileNotFoundError as error:
        raise LoadError(f"there is no file {path}. Check the path.") from error
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror or error}.") from error
    except (
        zipfile.BadZipFile,
        ValueError,
        EOFError,
        RuntimeError,
    ) as error:  # RuntimeError: encrypted, too deep, unknown to zipfile
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise LoadError(f"{path} is not a .pt2 archive ({text}). Save the model with torch.export.save.") from error
    return buffer.getvalue()


def _refuse(path: Path, what: str) -> NoReturn:
    raise LoadError(
        f"{path} holds {what}. It is refused because loading it could run code. Give the model as file.py:factory with --weights; "
        f"if you trust the file, the factory can load it with torch.export.load."
    )


def _part(path: Path, name: str, content: bytes) -> bytes:
    if name.startswith("data/sample_inputs/"):
        return b""
    if not name.endswith(".json"):
        return content
    document = _reduced(parse_json(content, finite=False))
    for problem in _problems(document):
        _refuse(path, problem)
    return json.dumps(document).encode()


def _reduced(value: Any) -> Any:
    """Return a JSON value without guard code, and without the metadata of nodes except ``nn_module_stack``."""
    if isinstance(value, list):
        return [_reduced(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _reduced(item) for key, item in value.items()}
    if "guards_code" in kept:
        kept["guards_code"] = []
    if isinstance(value.get("metadata"), dict) and "target" in value:
        kept["metadata"] = {k: v for k, v in value["metadata"].items() if k == "nn_module_stack"}
    return kept


def _problems(value: Any, key: str = "") -> Iterator[str]:
    """Yield descriptions of everything in a JSON value that no rule allows; ``key`` is the key of the value."""
    if isinstance(value, dict):
        if value.get("use_pickle"):
            yield f"the pickled tensor {value.get('path_name')!r}"
        for name, item in value.items():
            if not PLAIN.fullmatch(name):
                yield f"the name {name[:80]!r}"
            yield from _problems(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _problems(item, key)
    elif isinstance(value, str) and not _is_allowed(value, key):
        yield f"the {key or 'text'} {value[:80]!r}"


def _is_allowed(text: str, key: str) -> bool:
    match key:
        case "expr_str":
            return is_shape_expression(text)
        case "target" | "as_operator":
            return ARITHMETIC.fullmatch(text) is not None or _is_operator(text)
        case "path_name":
            return re.fullmatch(r"(weight|tensor)_\d+", text) is not None
        case "in_spec" | "out_spec":
            return is_plain_structure(text, PLAIN)
        case "as_string" | "as_strings" | "nn_module_stack":
            return TEXT.fullmatch(text) is not None
        case _ if key in NAMES:
            return not text or (text.isidentifier() and not keyword.iskeyword(text))
        case _:
            return PLAIN.fullmatch(text) is not None


def _is_operator(text: str) -> bool:
    prefix, _, name = text.partition("torch.ops.")
    try:
        return not prefix and bool(aten_operator(name))
    except LoadError:
        return False


def is_shape_expression(text: str) -> bool:
    """Return whether a text only builds symbols and numbers: calls of `FUNCTIONS`, names of symbols, numbers, arithmetic."""
    if len(text) > LONGEST_EXPRESSION:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the parser only warns about text that torch does not write
            tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError, Warning):
        return False
    return _allowed(tree.body)


def _allowed(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=bool() | int() | float()):
            return True
        case ast.Name(id=name):
            return re.fullmatch(r"[suz][a-z]*\d+|True|False", name) is not None
        case ast.Call(func=ast.Name(id="Symbol" | "Integer" | "Float"), args=[ast.Constant(value=str() as text)]):
            return _are_flags(node.keywords) and re.fullmatch(r"\w+(\.\w+)?", text) is not None
        case ast.Call(func=ast.Name(id="Pow" | "PowByNatural"), args=[base, exponent]):
            return not node.keywords and _allowed(base) and _is_small(exponent)
        case ast.Call(func=ast.Name(id=function), args=args):
            known = None if function.startswith("Pow") else FUNCTIONS.fullmatch(function)
            return known is not None and _are_flags(node.keywords) and all(map(_allowed, args))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _allowed(left) and _is_small(right)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() | ast.FloorDiv() | ast.Mod()):
            return _allowed(left) and _allowed(node.right)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            return _allowed(operand)
        case ast.Compare(left=left, comparators=others):
            return _allowed(left) and all(_allowed(other) for other in others)
        case _:
            return False


def _are_flags(keywords: list[ast.keyword]) -> bool:
    return all(k.arg and isinstance(k.value, ast.Constant) and isinstance(k.value.value, bool) for k in keywords)


def _is_small(exponent: ast.expr) -> bool:
    """Return whether an exponent is a whole number of at most `HIGHEST_POWER`; nested powers could take forever to compute."""
    match exponent:
        case ast.Call(func=ast.Name(id="Integer"), args=[inner], keywords=[]):
            return _is_small(inner)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return _is_small(inner)
        case ast.Constant(value=int() as value):
            return 0 <= value <= HIGHEST_POWER
        case _:
            return False
