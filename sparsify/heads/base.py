"""`Head`: defines calibrated outputs of a model: the buffers they read, the operators that compute them, and how they are fitted."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from sparsify.tasks import Task
from sparsify.tasks.base import judged

Call = Callable[..., Any]
"""Applies an ATen operator to arguments: ``call(torch.ops.aten.div.Tensor, logits, temperature)``. `run` computes the result with tensors;
the pass ``attach-calibration-head`` records a node instead."""
State = Mapping[str, Tensor]
"""Values of a head's buffers by name."""
OUTPUT, FEATURES = "output", "features"
"""What a head may read besides outputs by their name: the output that the task reads; the features [N, d] that the classifier reads."""


def run(operator: Callable[..., Any], *arguments: Any) -> Any:
    """Compute an operator: the `Call` for tensors.

    Examples:
        >>> import torch
        >>> from sparsify.heads import run
        >>> float(run(torch.ops.aten.div.Tensor, torch.tensor(3.0), torch.tensor(2.0)))
        1.5
    """
    return operator(*arguments)


def size_of(value: Any, dimension: int) -> int:
    """Return a fixed size of something that a head reads or computes, a tensor or the node that stands for it."""
    return int((value.shape if isinstance(value, Tensor) else value.meta["spec"].shape)[dimension])


@dataclass(frozen=True)
class HeldOut:
    """The samples that a head is fitted to: held-out ones, or training samples if the head says so (`Head.samples`).

    Attributes:
        output: the output that the task reads, float64 [N, ...], on the CPU; without NaN and without +infinity.
        target: targets of the samples, [N, ...], on the CPU.
        task: what output and target mean.
        level: share of new samples that an interval should hold, in (0, 1).
        others: further values that the head reads (`Head.reads`), float64 [N, ...] by name.
        classifier: weight [K, d] and bias [K] of the layer that computes the logits from the features, float64; None if they are unknown.
        again: runs the program once more on the same samples and returns the output, float64 [N, ...]; it takes a function that changes
            the inputs of a batch. None if the program cannot be run, as for the outputs of a file.
    """

    output: Tensor
    target: Tensor
    task: Task
    level: float = 0.9
    others: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    classifier: tuple[Tensor, Tensor] | None = None
    again: Callable[[Callable[[Any], Any]], Tensor] | None = None

    def read(self, head: Head) -> Any:
        """Return what a head reads of the samples: a tensor [N, ...], or a tuple of them if it reads several values."""
        values = tuple(self.output if name == OUTPUT else self.others[name] for name in head.reads)
        return values[0] if len(values) == 1 else values

    def shape(self, head: Head) -> Any:
        """Return the shape of what a head reads, ``("N", ...)``, or a tuple of shapes: see `Head.identity`."""
        values = self.read(head)
        if isinstance(values, Tensor):
            return "N", *values.shape[1:]
        return tuple(("N", *value.shape[1:]) for value in values)

    @property
    def judged(self) -> tuple[Tensor, Tensor]:
        """Scores [M, K] and right columns, int64 [M], of all judged decisions."""
        return judged(self.task, self.output, self.target)


@dataclass(frozen=True)
class Fitted:
    """The result of a fit.

    Attributes:
        values: new values of all buffers of the head, float64, of the same shapes.
        note: why the fit deserves little trust; None if there is no reason to doubt it.
        figures: what the fit found, by name, for logs and reports.
    """

    values: State
    note: str | None = None
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Head(ABC):
    """Adds outputs to the eval phase that are computed from the output that the task reads, or from other values of the program.

    A subclass is final and frozen. It holds no tensors: its buffers belong to the program and are passed in as a `State`. Its fields, if it
    has any, are numbers with a default; they are written after the name, as in ``lac:0.95``. `sparsify.heads.check_head` tests the
    promises made here.

    A program has one head that calibrates, at most, and any number of others, whose outputs are all in `beside`.

    Attributes:
        name: name of the head in ``attach-calibration-head{kind=...}`` and in the recipe key ``export.calibrator``.
        outputs: names of the outputs that it adds. All except those in `beside` have the shape and type of the output that the task reads.
        beside: names of outputs that are not a calibrated form of what the task reads, such as a set of classes, bool [N, K], or a score,
            [N]. Each has one row per sample; its other dimensions and its type are free.
        buffers: number of dimensions of each buffer by name; None if it depends on the output. No two heads have the same names and
            dimensions, because they identify the head of a program that an earlier version saved without the head's name.
        tasks: names of tasks that it also fits, besides those that list it in `sparsify.tasks.Task.heads`.
        reads: what `apply` is given: ``output``, the output that the task reads; ``features``, what the classifier reads, [N, d]; or the
            name of an output that another head makes, such as ``probabilities``. That head is then attached and fitted first.
        samples: which samples `fit` is given: ``held-out``, or ``training`` for statistics of the data that the model has learnt.
        unfitted: what its outputs are before it is fitted, for messages.
    """

    name: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]
    beside: ClassVar[tuple[str, ...]] = ()
    buffers: ClassVar[Mapping[str, int | None]]
    tasks: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[tuple[str, ...]] = (OUTPUT,)
    samples: ClassVar[Literal["held-out", "training"]] = "held-out"
    unfitted: ClassVar[str] = "its outputs are those of the model as trained"

    @property
    def calibrates(self) -> bool:
        """Whether an output of the head is a calibrated form of what the task reads."""
        return bool({*self.outputs} - {*self.beside})

    @property
    def spec(self) -> str:
        """The head as a recipe writes it: the name, and the values of its fields: ``lac:0.9``. `sparsify.heads.named` reads it back."""
        return ":".join([self.name, *(_written(getattr(self, f.name)) for f in dataclasses.fields(self))])

    @abstractmethod
    def identity(self, shape: Any) -> dict[str, Tensor]:
        """Return the buffers before they are fitted, in the order in which the graph reads them.

        Args:
            shape: shape of what the head reads, [N, ...]; a size that varies is a string. A tuple of shapes if it reads several values.
        """

    @abstractmethod
    def apply(self, call: Call, output: Any, state: Mapping[str, Any], task: Task | type[Task]) -> tuple[Any, ...]:
        """Compute the outputs; those of a sample must not depend on other samples.

        Args:
            call: applies an ATen operator.
            output: what the head reads, [N, ...]: a tensor, or the node that stands for it. A tuple of them if it reads several values.
            state: the buffers by name, as tensors or nodes.
            task: what the output means.

        Returns:
            One value per name in `outputs`.
        """

    @abstractmethod
    def fit(self, held: HeldOut, before: State) -> Fitted:
        """Find the values of the buffers.

        Args:
            held: the held-out samples.
            before: values to keep for buffers that the samples do not determine.

        Raises:
            ValueError: If the samples determine no value; the caller then keeps ``before`` and reports the reason.
        """

    def refit(self, held: HeldOut, before: State, program: Tensor) -> Fitted:
        """Find the values again for a file that computes in integers, whose outputs differ slightly from the program's.

        Args:
            held: the held-out samples, with the outputs of the file.
            before: values that were fitted to the program.
            program: outputs of the program for the same samples, float64 [N, ...].

        Raises:
            ValueError: If the samples determine no value.
        """
        del program
        return self.fit(held, before)

    def told(self, before: State, fitted: Fitted) -> str:
        """Describe in a few words what a refit did, for a report."""
        del before, fitted
        return f"{self.name} fitted again"

    def owns(self, shapes: Mapping[str, Sequence[Any]]) -> bool:
        """Return whether buffers of these names and shapes belong to this head."""
        return shapes.keys() == self.buffers.keys() and all(
            self.buffers[name] in (None, len(shape)) for name, shape in shapes.items()
        )


def _written(value: float) -> str:
    """Write a number with as few digits as say exactly it."""
    return str(value) if isinstance(value, int) else repr(value).removesuffix(".0")
