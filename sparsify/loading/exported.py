"""``model.pt2``: reading an archive of torch.export without running anything that is in it.

``torch.export.load`` unpickles parts of an archive, looks operators up by dotted names anywhere in torch, and hands shape expressions to
a symbolic parser that evaluates Python. So the archive is read here first: what is not plainly data is refused, the sample inputs (a
pickle) and guard code are left out, and torch sees only the copy that remains.
"""

from __future__ import annotations

import ast
import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsify.errors import LoadError

OPERATORS = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+|torch\.sym_(max|min|not|float|int)"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_)"
)
FUNCTIONS = (
    frozenset({"Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Max", "Min", "Mod", "FloorDiv"})
    | frozenset(
        {
            "CeilDiv",
            "CleanDiv",
            "PythonMod",
            "ModularIndexing",
            "Where",
            "Eq",
            "Ne",
            "Equality",
            "Unequality",
            "And",
            "Or",
            "Not",
        }
    )
    | frozenset(
        {"StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "IntTrueDiv", "FloatTrueDiv", "ToFloat"}
    )
)
"""What a shape expression may call; all build symbols and numbers."""
PARTS = re.compile(
    r"(models/\w+\.json|data/(weights|constants)/(\w+|\w+_config\.json)|data/sample_inputs/\w+\.pt|archive_format|archive_version"
    r"|byteorder|\.data/\w+|version)"
)


def load_exported(path: Path) -> nn.Module:
    """The model of a ``.pt2`` archive, with its parameter names and module tree.

    An exported program is of one mode: what was exported with ``model.eval()`` keeps its batch-norm statistics and has no dropout in
    training either.

    Raises:
        LoadError: If the file is missing, damaged, or holds anything that could run code.
    """
    safe = _sanitised(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about its own pieces
            return torch.export.unflatten(torch.export.load(io.BytesIO(safe)))
    except Exception as error:
        raise LoadError(
            f"{path} is no exported program this torch ({torch.__version__}) can read: {_first_line(error)}. Save it again with "
            f"torch.export.save, or load the model with file.py:factory."
        ) from error


def _sanitised(path: Path) -> bytes:
    buffer = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(buffer, "w") as copy:
            for entry in archive.infolist():
                name = entry.filename.split("/", 1)[-1]
                if not PARTS.fullmatch(name):
                    raise _refused(path, f"the part {name!r}")
                content = archive.read(entry)
                if name.startswith("data/sample_inputs/"):
                    content = b""
                elif name.endswith(".json"):
                    document = json.loads(content)
                    for problem in _problems(document):
                        raise _refused(path, problem)
                    if "guards_code" in document:
                        document["guards_code"] = []
                    content = json.dumps(document).encode()
                copy.writestr(zipfile.ZipInfo(entry.filename), content)
    except FileNotFoundError as error:
        raise LoadError(f"there is no file {path}. Check the path.") from error
    except (OSError, zipfile.BadZipFile, ValueError, RecursionError, NotImplementedError, EOFError) as error:
        raise LoadError(
            f"{path} is no .pt2 archive ({_first_line(error)}). Save the model with torch.export.save."
        ) from error
    return buffer.getvalue()


def _problems(value: Any) -> Iterator[str]:
    """What in a JSON document of the archive could run code."""
    if isinstance(value, list):
        for item in value:
            yield from _problems(item)
    if not isinstance(value, dict):
        return
    if value.get("use_pickle"):
        yield f"the pickled tensor {value.get('path_name')!r}"
    if isinstance(path := value.get("path_name"), str) and not re.fullmatch(r"(weight|tensor)_\d+", path):
        yield f"the object {path!r}"
    if isinstance(text := value.get("expr_str"), str) and not _is_shape_expression(text):
        yield f"the expression {text[:80]!r}"
    if "inputs" in value and isinstance(target := value.get("target"), str) and not OPERATORS.fullmatch(target):
        yield f"the operator {target!r}"
    for item in value.values():
        yield from _problems(item)


def _is_shape_expression(text: str) -> bool:
    """Whether a text only builds symbols and numbers: calls of known functions, names of symbols, numbers, arithmetic."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError):
        return False
    return _allowed(tree.body)


def _allowed(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=bool() | int() | float()):
            return True
        case ast.Name(id=name):
            return re.fullmatch(r"[suz][a-z]*\d+|True|False", name) is not None
        case ast.Call(func=ast.Name(id=function), args=args, keywords=keywords) if function in FUNCTIONS:
            named = all(
                isinstance(k.value, ast.Constant) and isinstance(k.value.value, bool) and k.arg for k in keywords
            )
            match args:
                case [ast.Constant(value=str() as symbol)]:
                    return (
                        named
                        and function in {"Symbol", "Integer", "Float"}
                        and re.fullmatch(r"\w+", symbol) is not None
                    )
                case _:
                    return named and all(_allowed(argument) for argument in args)
        case ast.BinOp(left=left, right=right):
            return _allowed(left) and _allowed(right)
        case ast.UnaryOp(operand=operand):
            return _allowed(operand)
        case ast.Compare(left=left, comparators=others):
            return _allowed(left) and all(_allowed(other) for other in others)
        case _:
            return False


def _refused(path: Path, what: str) -> LoadError:
    return LoadError(
        f"{path} holds {what}, which could run code when it is loaded, and is refused. Give the model as file.py:factory with "
        f"--weights, or load it with torch.export.load yourself where you trust it."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
