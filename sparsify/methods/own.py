"""Methods and wrappers from the user's own functions, named by ``file.py:function``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsify.errors import LoadError, RecipeError, SparsifyError
from sparsify.methods.base import Method
from sparsify.user_code import find, split, told, within


def is_own(name: str) -> bool:
    """Return whether a name in a method's spelling is a reference to a function, not a name of the registry."""
    return ":" in name or name.endswith(".py")


def label(name: str) -> str:
    """Return the name under which a layer's options are given: the function's name, or the name itself."""
    return name.rpartition(":")[2]


def own(name: str) -> Callable[..., Method]:
    """Load the function of a reference; its calls return a `Method` or raise an error that says what is wrong.

    Args:
        name: ``file.py:function`` or ``package.module:function``.

    Raises:
        RecipeError: If the file, module or function does not exist (the message names the nearest), or its import fails.
    """
    try:
        where, function = split(name, gives="method", called="function")
        path = Path(where)
        changed = path.stat().st_mtime_ns if where.endswith(".py") and path.is_file() else None
        found = _found(where, function, Path.cwd(), changed)
    except LoadError as error:
        raise RecipeError(f"cannot load the method {name!r}: {error}") from error

    @functools.wraps(found)
    def called(*base: Method, **given: Any) -> Method:
        try:
            with within(where):
                method = found(*base, **given)
        except SparsifyError:
            raise
        except (Exception, SystemExit) as error:
            shown = ", ".join([*(f"the method {b.name!r}" for b in base), *(f"{k}={v!r}" for k, v in given.items())])
            raise RecipeError(
                f"the method {name!r} failed: {told(error)}. It was called with {shown or 'nothing'}."
            ) from error
        if not isinstance(method, Method):
            raise RecipeError(f"{name!r} returned {type(method).__name__}; it should return a sparsify.Method.")
        return method

    return called


def parameters(function: Callable[..., Method]) -> list[inspect.Parameter]:
    """Return the named parameters of a function, in order."""
    every = inspect.signature(function).parameters.values()
    return [p for p in every if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def wraps(function: Callable[..., Method]) -> bool:
    """Return whether a function is a wrapper: it takes ``base`` first."""
    return [p.name for p in parameters(function)][:1] == ["base"]


@functools.lru_cache(maxsize=32)
def _found(where: str, function: str, folder: Path, changed: int | None) -> Callable[..., Method]:
    """Load a function once for each version of its file, so that reading a recipe does not execute the file repeatedly."""
    return find(where, function)
