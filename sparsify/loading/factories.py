"""Factories: the user's own code, called without arguments."""

from __future__ import annotations

from sparsify.errors import LoadError
from sparsify.references import find, split, within


def call_factory(text: str, *, gives: str) -> object:
    """What ``file.py:factory`` or ``package.module:factory`` returns. A file may import what lies beside it.

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
        raise LoadError(
            f"the factory {text!r} failed: {type(error).__name__}: {error}. It is called without arguments."
        ) from error
