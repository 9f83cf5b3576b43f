"""Find and run the user's own code, given as ``file.py:name`` or ``package.module:name``."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsify.errors import LoadError


def told(error: BaseException) -> str:
    """Describe an error of the user's code: its type, its message, and the file and line that raised it."""
    package = Path(__file__).parent
    own = [
        line
        for line in traceback.extract_tb(error.__traceback__)
        if not line.filename.startswith("<")
        and package not in Path(line.filename).parents
        and "site-packages" not in Path(line.filename).parts
    ]
    place = own[-1] if own else None
    where = f" (in {place.name}, {place.filename}, line {place.lineno})" if place is not None else ""
    return f"{type(error).__name__}: {error}{where}"


def split(text: str, *, gives: str, called: str = "factory") -> tuple[str, str]:
    """Split a reference into its file or module and the name in it.

    Args:
        text: the reference.
        gives: what the reference stands for, for messages, such as ``model``.
        called: what the name refers to, for messages, such as ``factory``.

    Raises:
        LoadError: If the text has another form.
    """
    where, colon, name = text.rpartition(":")
    if text.endswith((".onnx", ".ort", ".tflite", ".pb", ".h5")):
        raise LoadError(
            f"{text!r} is a finished file of another tool, which cannot be trained. Give the {gives} it was made from, as "
            f"file.py:{called} or package.module:{called}."
        )
    if not colon or not where or not name:
        raise LoadError(f"the {gives} {text!r} should be written file.py:{called} or package.module:{called}.")
    return where, name


def find(where: str, name: str) -> Callable[..., Any]:
    """Return the callable of that name; call it `within` the same place.

    Args:
        where: ``file.py``, which is executed again on each call, or ``package.module``.
        name: name of a function or another callable there.

    Raises:
        LoadError: If the file, the module or the name is missing (the message names the nearest), or the import fails.
    """
    try:
        with within(where):
            module = _executed(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except LoadError:
        raise
    except (Exception, SystemExit) as error:
        raise LoadError(f"importing {where} failed: {told(error)}.") from error
    found = getattr(module, name, None)
    if not callable(found):
        names = sorted(k for k, v in vars(module).items() if callable(v) and not k.startswith("_"))
        near = difflib.get_close_matches(name, names, n=3)
        nearest = f" Nearest: {', '.join(near)}." if near else ""
        raise LoadError(f"{where} has no callable {name!r}; it has {', '.join(names) or 'none'}.{nearest}")
    return found


def function(text: str, gives: str) -> Callable[..., Any]:
    """Return the function of a reference; while it runs, it can import modules from the folder of its file.

    Args:
        text: ``file.py:function`` or ``package.module:function``.
        gives: what the function stands for, for messages, such as ``loss``.

    Raises:
        LoadError: If there is no such file, module or function, or the import fails.
    """
    where, name = split(text, gives=gives, called="function")
    found = find(where, name)

    @functools.wraps(found)
    def called(*args: Any, **kwargs: Any) -> Any:
        with within(where):
            return found(*args, **kwargs)

    return called


@contextmanager
def within(where: str) -> Generator[None]:
    """Within the block, allow imports from the folder of a file, or from the working folder for a module; installed packages come first."""
    before = list(sys.path)
    sys.path.append(str(Path(where).resolve().parent if where.endswith(".py") else Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before


def _executed(path: Path) -> Any:
    if not path.is_file():
        raise LoadError(f"there is no file {path}. Check the path.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    known = sys.modules.setdefault(path.stem, module)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if known is module:
            del sys.modules[path.stem]
        raise
    return module
