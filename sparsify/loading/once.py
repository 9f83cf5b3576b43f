"""Avoids reading data twice: a run needs them before its task is known, and again for the task that fits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

Found = TypeVar("Found")
_KEPT: ContextVar[dict[Hashable, Any] | None] = ContextVar("kept", default=None)


@contextmanager
def read_once() -> Generator[None]:
    """Within the block, keep arrays, tables and results of factories that are read without a task until they are read for one."""
    if _KEPT.get() is not None:
        yield
        return
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


def once(key: Hashable, task: str | None, read: Callable[[], Found]) -> Found:
    """Call ``read``, or return its earlier result for the same key; its warnings are shown when the task is known.

    Args:
        key: identifies what is read, and how.
        task: name of the task for which it is read; None: unknown, so it will be read again.
        read: reads the data.
    """
    kept = _KEPT.get()
    if kept is None:
        return read()
    if task is None:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            kept[key] = read(), said
        return kept[key][0]
    if key not in kept:
        return read()
    found, said = kept.pop(key)
    for warning in said:
        warnings.warn(warning.message, warning.category, stacklevel=3)
    return found
