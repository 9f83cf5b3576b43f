"""Converts a task to plain data for files: its kind and its options.

Functions of the user's own cannot be stored; `LACKING` marks them as missing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sparsify.errors import TaskError
from sparsify.tasks.base import Task
from sparsify.tasks.custom import Custom
from sparsify.tasks.registry import kind

LACKING = "absent"
"""Stored in place of an option that is a function, such as the loss of a regression."""
LONGEST = 2**16
"""Largest number of characters of a text, and of numbers in a list, in an option."""


def absent(output: Any, target: Any) -> Tensor:
    """Replace the user's own loss in a task that was read from a file.

    Raises:
        TaskError: Always; the message says how to give the loss.
    """
    del output, target
    raise TaskError(
        "the loss of this task is a function of your own, which files do not store; neither do they store the figures of task 'custom'. "
        "Give --recipe to the command, or in Python task= with criterion=..., such as sparsify.tasks.Custom(criterion=...)."
    )


def measurable(task: Task | None) -> bool:
    """Return whether the task can measure outputs; it cannot if its functions are `absent`."""
    return task is not None and not (isinstance(task, Custom) and task.criterion is absent)


def as_task(task: str | Task) -> Task | None:
    """Return a given task, or the task of a name with its defaults; None if a task of another package has options without defaults.

    Raises:
        TaskError: If there is no task of that name.
    """
    return task if isinstance(task, Task) else _made(kind(task), {})


def to_data(task: Task) -> dict[str, Any] | None:
    """Return ``{"kind": name, "options": {...}}`` with the options that differ from their defaults; None if they are not plain data.

    Examples:
        >>> from sparsify.tasks import Regression
        >>> from sparsify.tasks.stored import from_data, to_data
        >>> to_data(Regression(criterion="huber"))
        {'kind': 'regression', 'options': {'criterion': 'huber'}}
        >>> str(from_data("regression", {"criterion": "huber"}))
        'regression{criterion=huber}'
    """
    defaults = _defaults(type(task))
    given = {name: value for name, default in defaults.items() if (value := getattr(task, name)) != default}
    functions = [name for name, value in given.items() if name in task.functions and callable(value)]
    options = {name: list(v) if isinstance(v, tuple) else v for name, v in given.items() if name not in functions}
    if not isinstance(task, Custom):  # which always lacks them
        options |= dict.fromkeys(functions, LACKING)
    try:
        known = from_data(task.name, options) if _registered(task) else None
    except TaskError:
        return None
    without = task if known is None else dataclasses.replace(task, **{name: getattr(known, name) for name in functions})
    return {"kind": task.name, "options": options} if known == without else None


def from_data(name: str, options: Mapping[str, Any]) -> Task:
    """Rebuild a task from the result of `to_data`, which may come from an untrusted file.

    Raises:
        TaskError: If the task does not exist, or an option has an unknown name or a wrong type.
    """
    cls, defaults = kind(name), _defaults(kind(name))
    values: dict[str, Any] = {}
    for key, value in options.items():
        lacking = value == LACKING and key in cls.functions
        if key not in defaults or not _alike(value, defaults[key]):
            known = ", ".join(key for key, default in defaults.items() if default is not None) or "none"
            raise TaskError(
                f"task {name!r} does not take the option {key!r} with the value {str(value)[:80]!r}. Its options are {known}."
            )
        values[key] = absent if lacking else tuple(value) if isinstance(value, list) else value
    made = _made(cls, values)
    if made is None:
        raise TaskError(f"task {name!r} cannot be made of plain data: it has an option without a default.")
    return made


def _registered(task: Task) -> bool:
    try:
        return kind(task.name) is type(task)
    except TaskError:
        return False


def _made(cls: type[Task], options: dict[str, Any]) -> Task | None:
    if issubclass(cls, Custom):
        return cls(criterion=absent, **options)
    lacking = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING and f.name not in options}
    return None if lacking else cls(**options)


def _defaults(cls: type[Task]) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(cls)}


def _alike(value: Any, default: Any) -> bool:
    """Return whether a value has the type of a default; False if the default is a function or missing."""
    match default:
        case bool():
            return isinstance(value, bool)
        case int():
            return isinstance(value, int) and not isinstance(value, bool)
        case float():
            return _number(value)
        case str():
            return isinstance(value, str) and len(value) <= LONGEST
        case tuple():
            return isinstance(value, list) and len(value) <= LONGEST and all(map(_number, value))
        case _:
            return False


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
