"""Calibration heads by name, the heads that fit a task, and the head that a program has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sparsify.errors import RecipeError
from sparsify.heads.base import Head
from sparsify.heads.ensemble import EnsembleTemperature
from sparsify.heads.feature_outliers import (
    AshBinarised,
    AshPruned,
    AshScaled,
    Dice,
    Mahalanobis,
    NearestNeighbours,
    React,
    RelativeMahalanobis,
    Scale,
    VirtualLogit,
)
from sparsify.heads.frequencies import Histogram, Isotonic
from sparsify.heads.h_calibration import HCalibration
from sparsify.heads.interval import Interval
from sparsify.heads.masked import MaskedTemperature
from sparsify.heads.matrix import Dirichlet, Matrix
from sparsify.heads.outliers import Energy, GeneralisedEntropy, MaximumLogit, MaximumProbability, Odin
from sparsify.heads.rejection import Accept
from sparsify.heads.scaling import LabelTemperature, Temperature, Vector
from sparsify.heads.sets import Aps, ClassLac, Lac, Raps
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
            HCalibration(),
            MaskedTemperature(),
            LabelTemperature(),
            Interval(),
            Lac(),
            ClassLac(),
            Aps(),
            Raps(),
            Accept(),
            MaximumProbability(),
            MaximumLogit(),
            Energy(),
            GeneralisedEntropy(),
            Odin(),
            Mahalanobis(),
            RelativeMahalanobis(),
            NearestNeighbours(),
            VirtualLogit(),
            React(),
            Dice(),
            AshPruned(),
            AshBinarised(),
            AshScaled(),
            Scale(),
        )
    },
)
"""The calibration heads, by name."""
AUTO, NONE = "auto", "none"
"""Used in place of a head's name: in a recipe for whichever fits, and in the metadata of a file for no head."""
LONGEST_NAME = 64


def named(text: str) -> Head:
    """Return the head that a recipe writes as a name and the values of its fields: ``temperature``, ``lac:0.95``, ``raps:0.9:0.01:2``.

    Raises:
        RecipeError: If there is no such head, or a value is not one that it takes.

    Examples:
        >>> from sparsify.heads import named
        >>> named("lac:0.95").coverage
        0.95
    """
    name, *values = text.split(":")
    head = HEADS.find(name)
    if not values:
        return head
    fields = dataclasses.fields(head)
    takes = ":".join([name, *(field.name for field in fields)])
    if len(values) > len(fields):
        raise RecipeError(f"the head {name!r} is written {takes}, found {text!r}. Leave out what follows.")
    try:
        given = {field.name: type(field.default)(value) for field, value in zip(fields, values, strict=False)}
        return dataclasses.replace(head, **given)
    except ValueError as error:
        raise RecipeError(
            f"the head {text!r} is written {takes}: {error}. Its values are usually {head.spec!r}."
        ) from error


def register(head: Head) -> Head:
    """Add a head of another package under its name, so that recipes, the command and ``attach-calibration-head`` know it.

    Raises:
        RecipeError: If another head has that name, or a program could not store it: it is ``auto`` or ``none``, has more than 64
            characters, or contains a colon or characters that cannot be printed.
    """
    name = head.name
    if isinstance(name, str) and (
        name in (AUTO, NONE) or len(name) > LONGEST_NAME or not name.isprintable() or ":" in name
    ):
        raise RecipeError(
            f"the name of a calibration head should have at most {LONGEST_NAME} printable characters, no colon, and be neither {AUTO!r} "
            f"nor {NONE!r}, "
            f"which recipes and files use for something else; found {name[:80]!r}. Choose another name."
        )
    return HEADS.register(name, head)


def fitting(task: Task | type[Task]) -> tuple[str, ...]:
    """Return the names of the heads that fit the outputs of a task: first those that the task lists, then those that list the task.

    Examples:
        >>> from sparsify.heads import fitting
        >>> from sparsify.tasks import Binary
        >>> fitting(Binary)
        ('temperature', 'masked-temperature')
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
    known = (
        [head for head in HEADS.values() if head.calibrates] if name is None else [HEADS[name]] if name in HEADS else []
    )
    return next((head for head in known if head.owns(shapes)), None)
