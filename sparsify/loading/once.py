"""Data that a run reads twice, first for no task and then for the one that fits, are read once."""

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
    """Within the block, keep what is read for no task until it is read for one: arrays, tables, what a factory returns."""
    if _KEPT.get() is not None:
        yield
        return
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


def once(key: Hashable, task: str | None, read: Callable[[], Found]) -> Found:
    """What ``read`` returns, or returned for the same key where no task was known yet; what it warns of is said when the task is known.

    Args:
        key: what is read, and how.
        task: it is read for; None: it will be read again.
        read: reads it.
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
