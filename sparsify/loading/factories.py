"""Factories: the user's own code, called without arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from sparsify.errors import LoadError
from sparsify.user_code import find, split, told, within


def call_factory(text: str, *, gives: str) -> object:
    """Return what ``file.py:factory`` or ``package.module:factory`` returns. A file may import what lies beside it.

    Args:
        text: which factory.
        gives: what it should return, for messages.

    Raises:
        LoadError: If the file, module or factory is missing, or fails.
    """
    where, name = split(text, gives=gives)
    factory = find(where, name)
    try:
        with within(where):
            return factory()
    except LoadError:
        raise
    except (Exception, SystemExit) as error:
        raise LoadError(f"the factory {text!r} failed: {told(error)}.{_called(factory)}") from error


def _called(factory: Callable[..., Any]) -> str:
    """That a factory gets no arguments, where it asks for some."""
    try:
        inspect.signature(factory).bind()
    except TypeError:
        return " It is called without arguments; give its parameters defaults."
    except ValueError:  # written in C, without a signature
        return " It is called without arguments."
    return ""
