"""Finds tasks by name, or the only task that fits data and outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sparsify.arguments import check, hints_of
from sparsify.errors import TaskError
from sparsify.registry import Registry
from sparsify.tasks.base import Shape, Task, shown
from sparsify.tasks.classes import Classification, Dense, Sequence
from sparsify.tasks.custom import Custom
from sparsify.tasks.labels import Binary, Multilabel
from sparsify.tasks.regression import Regression

TASKS: Registry[type[Task]] = Registry(
    "task",
    TaskError,
    {cls.name: cls for cls in (Classification, Binary, Multilabel, Regression, Dense, Sequence, Custom)},
)
"""The kinds of tasks, by name."""
SET = "Set the task: kind = {0!r} under [task] in a recipe, --task {0} for the command, task={0!r} in Python."


def register(task: type[Task]) -> type[Task]:
    """Add a task of another package under its name, for use in recipes and with the command; also usable as a decorator.

    Raises:
        TaskError: If another task has that name.
    """
    return TASKS.register(task.name, task)


def build(task: str | Task, options: Mapping[str, Any] | None = None) -> Task:
    """Build a task from its name and options; a task is returned unchanged.

    Raises:
        TaskError: If the name or an option is unknown (the message names the nearest), or an option has a wrong value or type.

    Examples:
        >>> from sparsify.tasks import build
        >>> build("regression").criterion
        'mse'
    """
    if isinstance(task, Task):
        return task
    cls, given = _class(task), dict(options or {})
    known = [field.name for field in dataclasses.fields(cls)]
    for key in given:
        if key not in known:
            raise TaskError(f"task {task!r} has no option {key!r}. It has {', '.join(known) or 'none'}.")
    if lacking := [name for name in _required(cls) if name not in given]:
        raise TaskError(f"task {task!r} needs a value for {', '.join(lacking)}, which has no default.")
    with suppress(NameError):  # annotations of another package that only its own module can resolve
        check(given, hints_of(cls), f"task {task!r}", TaskError)
    return cls(**given)


def kind(task: str | Task) -> type[Task]:
    """Return the class of a task, given the task or its name.

    Raises:
        TaskError: If there is no task of that name.
    """
    return type(task) if isinstance(task, Task) else _class(task)


def infer(target: Any, shape: Shape) -> Task:
    """Find the only task that fits targets and output.

    Args:
        target: targets of the training samples, [N, ...].
        shape: shape of the output, [N, ...].

    Raises:
        TaskError: If no task or several tasks fit; the message names them.
    """
    tasks = [cls() for cls in TASKS.values() if cls is not Custom and not _required(cls)]
    suiting = [task for task in tasks if task.suits(target, shape)]
    if len(suiting) == 1:
        return suiting[0]
    told = f"targets {shown(target)} and an output of shape {list(shape)}"
    if suiting:
        names = " and ".join(repr(task.name) for task in suiting)
        raise TaskError(f"the tasks {names} both fit {told}. {SET.format(suiting[0].name)}")
    possible = [task.name for task in tasks if not task.problem(target, shape)]
    may = (
        f" {' and '.join(map(repr, possible))} would be possible, but is not chosen automatically." if possible else ""
    )
    why = "; ".join(f"{task.name}: {task.problem(target, shape)}" for task in tasks if task.name not in possible)
    raise TaskError(
        f"no task clearly fits {told}.{may} The others do not fit ({why}). {SET.format(possible[0] if possible else 'custom')}"
    )


def _required(cls: type[Task]) -> list[str]:
    """Return the options without a default."""
    missing = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(cls) if f.default is missing and f.default_factory is missing]


def _class(name: str) -> type[Task]:
    return TASKS.find(name if isinstance(name, str) else repr(name))
