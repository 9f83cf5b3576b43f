"""`Head`: calibrated outputs of a model as a value: the buffers they read, the operators that make them, and how they are fitted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sparsify.tasks import Shape, Task
from sparsify.tasks.base import judged

Call = Callable[..., Any]
"""Applies an ATen operator to arguments: ``call(torch.ops.aten.div.Tensor, logits, temperature)``. `run` computes the result with tensors;
the pass ``attach-calibration-head`` records a node instead."""
State = Mapping[str, Tensor]
"""Values of a head's buffers by name."""


def run(operator: Callable[..., Any], *arguments: Any) -> Any:
    """Compute an operator: the `Call` for tensors.

    Examples:
        >>> import torch
        >>> from sparsify.heads import run
        >>> float(run(torch.ops.aten.div.Tensor, torch.tensor(3.0), torch.tensor(2.0)))
        1.5
    """
    return operator(*arguments)


@dataclass(frozen=True)
class HeldOut:
    """What a head is fitted to: outputs of held-out samples and what they should have been.

    Attributes:
        output: what the task reads, float64 [N, ...], on the CPU; without NaN and without +infinity.
        target: [N, ...], on the CPU.
        task: what the two mean.
        level: the share of new samples that an interval should hold, in (0, 1).
    """

    output: Tensor
    target: Tensor
    task: Task
    level: float = 0.9

    @property
    def judged(self) -> tuple[Tensor, Tensor]:
        """A row of scores [M, K] and the right column, int64 [M], for each decision that is judged."""
        return judged(self.task, self.output, self.target)


@dataclass(frozen=True)
class Fitted:
    """What a fit found.

    Attributes:
        values: of every buffer of the head, float64, in its shape.
        note: why the fit deserves little trust; None: it does deserve it.
    """

    values: State
    note: str | None = None


@dataclass(frozen=True)
class Head(ABC):
    """Outputs that are added after the one that a task reads, in the eval phase only.

    A subclass is final and frozen. It holds no tensors: buffers belong to the program, are called ``calibration.<name>`` there, and come in
    as a `State`. `sparsify.heads.check_head` tries the promises made here.

    Attributes:
        name: of the head, as ``attach-calibration-head{kind=...}`` and the recipe key ``export.calibrator`` write it.
        outputs: names of the outputs that it adds. Each has the shape and the type of the output that the task reads, but those `beside`.
        beside: those of its outputs that are something else than what the task reads, calibrated: a set of classes, bool [N, K], or a
            score, [N]. Each has a row per sample, and whatever further shape and type.
        buffers: number of dimensions of each buffer, by name; None: it depends on the output. Names and dimensions together say which
            head a program of an earlier version has, whose file does not name it, so no two heads have the same.
        tasks: names of tasks that it is offered for, beside those that name it in `sparsify.tasks.Task.heads`.
        unfitted: what its outputs are before it is fitted, for messages.
    """

    name: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]
    beside: ClassVar[tuple[str, ...]] = ()
    buffers: ClassVar[Mapping[str, int | None]]
    tasks: ClassVar[tuple[str, ...]] = ()
    unfitted: ClassVar[str] = "its outputs are those of the model as trained"

    @abstractmethod
    def identity(self, shape: Shape) -> dict[str, Tensor]:
        """The buffers before they are fitted, in the order in which the graph reads them.

        Args:
            shape: of the output that the task reads, [N, ...]; a size that varies is a text.
        """

    @abstractmethod
    def apply(self, call: Call, output: Any, state: Mapping[str, Any], task: Task | type[Task]) -> tuple[Any, ...]:
        """Make the outputs, each sample by itself.

        Args:
            call: what applies ATen operators.
            output: what the task reads, [N, ...]: a tensor, or the node that stands for it.
            state: the buffers by name, likewise.
            task: what the output means.

        Returns:
            One value per name in `outputs`.
        """

    @abstractmethod
    def fit(self, held: HeldOut, before: State) -> Fitted:
        """Find the values of the buffers.

        Args:
            held: the samples.
            before: the values to keep where the samples do not determine others.

        Raises:
            ValueError: If the samples determine nothing; the caller then keeps ``before`` and says why.
        """

    def refit(self, held: HeldOut, before: State, program: Tensor) -> Fitted:
        """Find the values again for a file that computes in integers, so that its outputs differ a little from the program's.

        Args:
            held: the samples, with the outputs of the file.
            before: values that were fitted to the program.
            program: outputs of the program for the same samples, float64 [N, ...].

        Raises:
            ValueError: If the samples determine nothing.
        """
        del program
        return self.fit(held, before)

    def told(self, before: State, fitted: Fitted) -> str:
        """What a refit did, in a few words, for a report."""
        del before, fitted
        return f"{self.name} fitted again"

    def owns(self, shapes: Mapping[str, Sequence[Any]]) -> bool:
        """Whether buffers of these names and shapes are those of this head."""
        return shapes.keys() == self.buffers.keys() and all(
            self.buffers[name] in (None, len(shape)) for name, shape in shapes.items()
        )
