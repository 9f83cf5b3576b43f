"""Calibration heads by name, the heads that fit a task, and the head that a program has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsify.errors import RecipeError
from sparsify.heads.base import Head
from sparsify.heads.ensemble import EnsembleTemperature
from sparsify.heads.frequencies import Histogram, Isotonic
from sparsify.heads.interval import Interval
from sparsify.heads.matrix import Dirichlet, Matrix
from sparsify.heads.scaling import LabelTemperature, Temperature, Vector
from sparsify.registry import Registry
from sparsify.tasks import Task

HEADS: Registry[Head] = Registry(
    "calibration head",
    RecipeError,
    {
        head.name: head
        for head in (
            Temperature(),
            Vector(),
            Matrix(),
            Dirichlet(),
            EnsembleTemperature(),
            Isotonic(),
            Histogram(),
            LabelTemperature(),
            Interval(),
        )
    },
)
"""The calibration heads, by name."""
AUTO, NONE = "auto", "none"
"""Used in place of a head's name: in a recipe for whichever fits, and in the metadata of a file for no head."""
LONGEST_NAME = 64


def register(head: Head) -> Head:
    """Add a head of another package under its name, so that recipes, the command and ``attach-calibration-head`` know it.

    Raises:
        RecipeError: If another head has that name, or a program could not store it: it is ``auto`` or ``none``, has more than 64
            characters, or contains characters that cannot be printed.
    """
    name = head.name
    if isinstance(name, str) and (name in (AUTO, NONE) or len(name) > LONGEST_NAME or not name.isprintable()):
        raise RecipeError(
            f"the name of a calibration head should have at most {LONGEST_NAME} printable characters and be neither {AUTO!r} nor {NONE!r}, "
            f"which recipes and files use for something else; found {name[:80]!r}. Choose another name."
        )
    return HEADS.register(name, head)


def fitting(task: Task | type[Task]) -> tuple[str, ...]:
    """Return the names of the heads that fit the outputs of a task: first those that the task lists, then those that list the task.

    Examples:
        >>> from sparsify.heads import fitting
        >>> from sparsify.tasks import Binary
        >>> fitting(Binary)
        ('temperature',)
    """
    named = (name for name, head in HEADS.items() if task.name in head.tasks)
    return tuple(dict.fromkeys((*task.heads, *named)))


def owner(shapes: Mapping[str, Sequence[Any]], name: str | None = None) -> Head | None:
    """Return the head that has buffers of these names and shapes; None if no installed head does.

    Args:
        shapes: shape of each buffer by name.
        name: name of the head; None if it is unknown, as for files of earlier versions.

    Examples:
        >>> from sparsify.heads import owner
        >>> owner({"scale": (10,), "bias": (10,)}).name
        'vector'
    """
    known = HEADS.values() if name is None else [HEADS[name]] if name in HEADS else []
    return next((head for head in known if head.owns(shapes)), None)
