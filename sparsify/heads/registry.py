"""Calibration heads by name, which of them fit a task, and which one a program has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsify.errors import RecipeError
from sparsify.heads.base import Head
from sparsify.heads.interval import Interval
from sparsify.heads.scaling import LabelTemperature, Temperature, Vector
from sparsify.registry import Registry
from sparsify.tasks import Task

HEADS: Registry[Head] = Registry(
    "calibration head",
    RecipeError,
    {head.name: head for head in (Temperature(), Vector(), LabelTemperature(), Interval())},
)
"""The calibration heads, by name."""


def register(head: Head) -> Head:
    """Add a head of another package under its name, so that recipes, the command and ``attach-calibration-head`` know it.

    Raises:
        RecipeError: If another head has that name.
    """
    return HEADS.register(head.name, head)


def fitting(task: Task | type[Task]) -> tuple[str, ...]:
    """Names of the heads that fit the outputs of a task, the usual one first: those it names, then those that name it.

    Examples:
        >>> from sparsify.heads import fitting
        >>> from sparsify.tasks import Classification
        >>> fitting(Classification)
        ('temperature', 'vector')
    """
    named = (name for name, head in HEADS.items() if task.name in head.tasks)
    return tuple(dict.fromkeys((*task.heads, *named)))


def owner(shapes: Mapping[str, Sequence[Any]]) -> Head | None:
    """The head that has buffers of these names and shapes; None where no head that is installed does.

    Examples:
        >>> from sparsify.heads import owner
        >>> owner({"scale": (10,), "bias": (10,)}).name
        'vector'
    """
    return next((head for head in HEADS.values() if head.owns(shapes)), None)
