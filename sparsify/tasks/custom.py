"""Defines the custom task, whose loss and figures are functions of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from sparsify.arguments import LATER, checked_fields
from sparsify.errors import TaskError, TrainingError
from sparsify.figures.arrays import Array
from sparsify.figures.bootstrap import FEWER_RESAMPLES, Figure, of_rows
from sparsify.parts.trees import mapped, tensors
from sparsify.tasks.base import Shape, Task, own_loss, shown, unsmoothed


@checked_fields(TaskError)
@dataclass(frozen=True)
class Custom(Task):
    """Outputs and targets of any kind; only the given functions need to understand them.

    Attributes:
        criterion: ``loss(output, target)``, which returns a scalar tensor. The output is what the model returns, in its own structure.
        measure: ``figures(output, target)``, which returns numbers by name, the headline first; None: the loss is the only figure.
        lower_is_better: names of figures for which a lower value is better, separated by commas; ``loss`` always is one.
        greater_is_better: names of figures for which a greater value is better. For a figure in neither list, no value is called better.

    Raises:
        TaskError: If the loss or the figures are not functions, the names are not strings, or a figure is in both lists.

    Examples:
        >>> from sparsify.tasks import Custom
        >>> task = Custom(
        ...     criterion=lambda output, target: ((output - target) ** 2).mean(),
        ...     measure=lambda output, target: {"mse": float(((output - target) ** 2).mean()), "mean": float(output.mean())},
        ...     lower_is_better="mse",
        ... )
        >>> [task.higher_is_better(name) for name in ("mse", "mean")]
        [False, None]
    """

    name: ClassVar = "custom"
    output: ClassVar = None
    targets: ClassVar = "whatever its loss takes"
    functions: ClassVar = frozenset({"criterion", "measure"})
    resamples: ClassVar = FEWER_RESAMPLES

    criterion: Annotated[Callable[[Any, Any], Tensor] | None, LATER] = None
    measure: Annotated[Callable[[Any, Any], Mapping[str, float]] | None, LATER] = None
    lower_is_better: str = ""
    greater_is_better: str = ""

    def __post_init__(self) -> None:
        if not callable(self.criterion):
            raise TaskError(
                f"task 'custom' needs a loss, a function of output and target; found {self.criterion!r}. Give one: --loss file.py:function "
                f"for the command, sparsify.tasks.Custom(criterion=...) in Python."
            )
        if self.measure is not None and not callable(self.measure):
            raise TaskError(
                f"the figures of task 'custom' should be a function of output and target, found {self.measure!r}."
            )
        if both := ({*_names(self.lower_is_better), "loss"} & {*_names(self.greater_is_better)}):
            raise TaskError(
                f"the figure {min(both)!r} of task 'custom' is declared better in both directions (for 'loss', lower is always "
                f"better). Name it in one of {' and '.join(WAYS)}."
            )

    def loss(self, output: Any, target: Any, *, label_smoothing: float = 0.0) -> Tensor:
        unsmoothed(self, label_smoothing)
        assert self.criterion is not None
        return own_loss(self, self.criterion, output, target)

    def figures(self, output: Any, target: Any) -> dict[str, float]:
        """Compute the figures of the user's function, or the loss if there is none.

        Raises:
            TrainingError: If the function does not return a mapping of numbers by name.
            TaskError: If ``lower_is_better`` or ``greater_is_better`` names a figure that does not exist.
        """
        output = mapped(Tensor.detach, output)
        found = {"loss": float(self.loss(output, target))} if self.measure is None else self._measured(output, target)
        for way in WAYS:
            if absent := [name for name in _names(getattr(self, way)) if name not in found]:
                raise TaskError(
                    f"{way} of task 'custom' names {absent[0]!r}, but its figures are {', '.join(map(repr, found))}. Name one of these, or "
                    f"leave it out."
                )
        return found

    def _measured(self, output: Any, target: Any) -> dict[str, float]:
        """Return the result of the user's function."""
        assert self.measure is not None
        found = self.measure(output, target)
        try:
            read = {str(name): float(value) for name, value in found.items()}
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise TrainingError(
                f"the figures of task {str(self)!r} should be a mapping of numbers by name, such as {{'r2': 0.9}}; found "
                f"{shown(found)} ({error})."
            ) from error
        if not read:
            raise TrainingError(f"the figures of task {str(self)!r} are empty. Return at least one number by name.")
        return read

    def resampled(self, output: Any, target: Any) -> Figure | None:
        """Return the first figure of the user's function, called again with the rows of each draw.

        None if a tensor of the output or the target does not have one row per sample.
        """
        values = [*tensors(output), *tensors(target)]
        if not values or any(not value.ndim or len(value) != len(values[0]) for value in values):
            return None

        def measured(drawn_rows: Array) -> float:
            rows = torch.from_numpy(drawn_rows)
            drawn, wanted = (mapped(lambda value: value[rows], tree) for tree in (output, target))
            return next(iter(self.figures(drawn, wanted).values()))

        return of_rows(measured)

    def problem(self, target: Any, shape: Shape) -> str:
        del target, shape
        return ""

    def suits(self, target: Any, shape: Shape) -> bool:
        del target, shape
        return False

    def higher_is_better(self, figure: str) -> bool | None:
        if figure == "loss" or figure in _names(self.lower_is_better):
            return False
        return True if figure in _names(self.greater_is_better) else None


WAYS = ("lower_is_better", "greater_is_better")
"""Options with the names of figures for which a lower or a greater value is better."""


def _names(text: str) -> list[str]:
    return [name for part in text.split(",") if (name := part.strip())]
