"""Calls factories: functions of the user's own that take no arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from sparsify.errors import LoadError
from sparsify.user_code import find, split, told, within


def call_factory(text: str, *, gives: str) -> object:
    """Call ``file.py:factory`` or ``package.module:factory`` and return the result. A file may import modules from its folder.

    Args:
        text: reference to the factory.
        gives: what the factory should return, for messages.

    Raises:
        LoadError: If the file, module or factory is missing, or the factory fails.
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
    """Return a sentence that says a factory gets no arguments, if it requires some; else an empty string."""
    try:
        inspect.signature(factory).bind()
    except TypeError:
        return " It is called without arguments; give its parameters defaults."
    except ValueError:  # written in C, without a signature
        return " It is called without arguments."
    return ""
