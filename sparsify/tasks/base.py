"""Defines `Task`: what the outputs of a model mean, so that other code does not assume class scores [N, K]."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsify.errors import DataError, TrainingError
from sparsify.figures import metrics
from sparsify.figures.bootstrap import RESAMPLES, Figure
from sparsify.parts import trees

Shape = Sequence[int | str]
"""The shape of an output; a size that varies is a string, such as ``"N"``."""


@dataclass(frozen=True)
class Task(ABC):
    """The meaning of a model's outputs: targets, loss, figures, decisions, and calibration heads.

    A subclass is final and frozen, and its fields are the options of the task. `sparsify.tasks.check_task` tests what is promised here.

    Attributes:
        name: name of the task in a recipe.
        output: name of the output that the task reads; None: it reads all outputs, as the model returns them.
        targets: description of the targets, for messages and help.
        lower: names of the figures for which a lower value is better.
        heads: names of calibration heads (`sparsify.heads`) that fit its outputs, the usual one first.
        constant: the headline figure of the best constant answer; None: it depends on the data.
        taught: whether a model can learn from a teacher (`imitation`).
        functions: names of options that may be functions of the user's own, which files do not store.
        resamples: number of draws for an interval by `resampled`.
        link: what turns scores into probabilities: ``softmax`` over dimension ``class_dim``, ``sigmoid``, or ``none``.
    """

    name: ClassVar[str]
    output: ClassVar[str | None] = "logits"
    targets: ClassVar[str]
    lower: ClassVar[frozenset[str]] = frozenset({"nll", "ece", "perplexity", "rmse", "mae"})
    heads: ClassVar[tuple[str, ...]] = ()
    constant: ClassVar[float | None] = None
    taught: ClassVar[bool] = False
    functions: ClassVar[frozenset[str]] = frozenset()
    resamples: ClassVar[int] = RESAMPLES
    link: ClassVar[str] = "none"
    class_dim: ClassVar[int] = -1

    @abstractmethod
    def loss(self, output: Any, target: Any, *, label_smoothing: float = 0.0) -> Tensor:
        """Compute the loss of a batch: a scalar with a gradient, averaged over everything that is judged.

        Args:
            output: what the model returns under the name `trained_on`, [N, ...].
            target: targets of the batch, [N, ...].
            label_smoothing: in [0, 1), for tasks that choose among classes.

        Raises:
            TrainingError: If output and target do not fit together, or label smoothing is given for a task without labels.
        """

    def imitation(self, output: Any, teacher: Any, target: Any = None, *, temperature: float = 1.0) -> Tensor:
        """Compute the loss of differing from a teacher: a scalar with a gradient, 0 if both outputs are equal.

        Args:
            output: what the model returns under the name `output`, [N, ...].
            teacher: the same output of the teacher, of the same shape; receives no gradient.
            target: targets of the batch, if they mark entries that are not judged; None: all entries are judged.
            temperature: divides logits before they become probabilities, above 0.

        Raises:
            TrainingError: If the task has no such loss.
        """
        del output, teacher, target, temperature
        raise TrainingError(unteachable(self))

    @abstractmethod
    def figures(self, output: Any, target: Any) -> dict[str, float]:
        """Compute the figures of a data set by name, the headline first; NaN for a figure that the samples do not define.

        Args:
            output: output for all samples, [N, ...]. A decision from values that are not finite counts as wrong.
            target: targets of all samples, [N, ...].
        """

    @abstractmethod
    def problem(self, target: Any, shape: Shape) -> str:
        """Return why targets do not fit an output of this shape, as the end of a sentence; empty if they fit.

        Args:
            target: targets of all samples, [N, ...]; types, shapes and ranges are checked.
            shape: shape of the output, [N, ...].
        """

    @property
    def trained_on(self) -> str | None:
        """Name of the output that the loss reads: `output`, unless the loss reads more. None: all outputs, as the model returns them."""
        return self.output

    @classmethod
    def takes(cls, shape: Shape) -> bool:
        """Return whether an output of this shape, [N, ...], may be the one that the task reads."""
        return bool(shape)

    def scores(self, output: Any) -> Tensor | None:
        """Return the scores of all decisions in an output, [M, K]; each row chooses its highest entry. None if nothing is decided."""
        del output
        return None

    def answers(self, target: Any) -> Tensor | None:
        """Return what the rows of `scores` should choose, int64 [M]; -1 if a row is not judged. None if nothing is decided."""
        del target
        return None

    def about(self, output: Any) -> Tensor | None:
        """Return what each row of `scores` decides about, int64 [M], such as the number of a label; None: all rows are of one kind."""
        del output
        return None

    def agreement(self, want: Any, have: Any) -> float | None:
        """Return the share of equal decisions in two outputs for the same samples, in [0, 1]; None if nothing is decided."""
        first, second = self.decisions(want), self.decisions(have)
        return None if first is None or second is None else float((first == second).double().mean())

    def resampled(self, output: Any, target: Any) -> Figure | None:
        """Return the headline figure as a function of draws with repetition (`sparsify.figures.bootstrap`), for an interval; None: unknown.

        Args:
            output: output for all samples, [N, ...].
            target: targets of all samples, [N, ...].
        """
        del output, target
        return None

    def suits(self, target: Any, shape: Shape) -> bool:
        """Return whether to infer this task from such data; stricter than `problem` if the data could mean several things."""
        return not self.problem(target, shape)

    def decisions(self, output: Any) -> Tensor | None:
        """Return the decisions of an output, int64 [M]; None if it decides nothing, so that only errors can be compared."""
        scores = self.scores(output)
        return None if scores is None else scores.argmax(1)

    def right(self, output: Any, target: Any) -> tuple[int, int] | None:
        """Count the right decisions of finite outputs, and the judged ones; None if nothing is decided."""
        scores, answers = self.scores(output), self.answers(target)
        if scores is None or answers is None:
            return None
        return int((scores.argmax(1) == answers).sum()), int((answers >= 0).sum())

    def higher_is_better(self, figure: str) -> bool | None:
        """Return whether a higher value of a figure is better; None if that is unknown, so that no value is called better."""
        return figure not in self.lower

    def shortfall(self, figures: Mapping[str, float]) -> str:
        """Return why a model with these figures is worse than a constant answer; empty if it is not, or if that depends on the data.

        Args:
            figures: figures of held-out samples.
        """
        name = headline(figures)
        if self.constant is None or not figures[name] < self.constant:
            return ""
        return f"{name} is {figures[name]:.4g}, but a constant answer reaches {self.constant:g}"

    def check(self, target: Any, shape: Shape) -> None:
        """Check targets against the output that the task reads.

        Raises:
            DataError: If they do not fit; the message names the task, what it expects and what was found.
        """
        if found := self.problem(target, shape):
            raise DataError(f"task {str(self)!r} takes {self.targets}, but {found}. {SET}")

    def __str__(self) -> str:
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
        inside = ", ".join(f"{key}={getattr(value, '__name__', value)}" for key, value in given.items())
        return f"{self.name}{{{inside}}}" if inside else self.name


SET = "Correct the data or the model, or set another task: [task] kind in a recipe, --task for the command, task=... in Python."


def headline(figures: Mapping[str, float]) -> str:
    """Return the name of the figure that stands for all: the first."""
    return next(iter(figures))


def judged(task: Task, output: Any, target: Any) -> tuple[Tensor, Tensor]:
    """Return the scores [M, K] and the right columns [M] of all judged decisions; only for tasks that decide."""
    scores, answers = task.scores(output), task.answers(target)
    assert scores is not None and answers is not None
    known = answers >= 0
    return scores[known], answers[known]


def decided(task: Task, output: Any, target: Any) -> dict[str, float]:
    """Compute accuracy, NLL and ECE of a task's decisions; NaN if scores are not finite or no decision is judged."""
    scores, answers = judged(task, output.detach().cpu(), target.cpu())
    scores = scores.double()
    if not len(answers):
        return dict.fromkeys(("accuracy", "nll", "ece"), float("nan"))
    known = ~(scores.isnan() | (scores == torch.inf)).any(1)
    found = {"accuracy": float(((scores.argmax(1) == answers) & known).double().mean())}
    if not bool(known.all()):
        return {**found, "nll": float("nan"), "ece": float("nan")}
    table = scores.softmax(1)
    return {**found, "nll": metrics.nll(table, answers), "ece": metrics.ece(table, answers)}


def fits(sizes: Shape, shape: Shape) -> bool:
    """Return whether two shapes are the same, apart from sizes that vary."""
    return len(sizes) == len(shape) and all(
        isinstance(a, str) or isinstance(b, str) or a == b for a, b in zip(sizes, shape, strict=True)
    )


def shown(target: Any) -> str:
    """Return the dtype and shape of a target, or its type, for a message."""
    if not isinstance(target, Tensor):
        return type(target).__name__
    return f"{str(target.dtype).removeprefix('torch.')} {list(target.shape)}"


def is_whole(target: Tensor) -> bool:
    """Return whether the numbers are of an integer type."""
    return not (target.is_floating_point() or target.is_complex() or target.dtype is torch.bool)


def is_zero_one(target: Tensor) -> bool:
    """Return whether all values are 0 or 1, in any type."""
    return target.dtype is torch.bool or bool(((target == 0) | (target == 1)).all())


def own_loss(task: Task, criterion: Callable[[Any, Any], Any], output: Any, target: Any) -> Tensor:
    """Compute the loss with a function of the user's own.

    Raises:
        TrainingError: If it does not return a single number.
    """
    value = criterion(output, target)
    if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
        raise TrainingError(
            f"the loss of task {str(task)!r} should return one number, a floating-point tensor of shape []; it returned "
            f"{shown(value)}. Take the mean over the batch."
        )
    return value


def check_gradient(task: Task, output: Any, value: Tensor) -> None:
    """Check that the loss has a gradient if the output has one.

    Args:
        task: the task of the loss.
        output: what the loss was computed from, tensors in any structure.
        value: the loss.

    Raises:
        TrainingError: If gradients flow to the output, and the loss has none.
    """
    if value.requires_grad or not torch.is_grad_enabled():
        return
    if any(leaf.requires_grad for leaf in trees.tensors(output)):
        raise TrainingError(
            f"the loss of task {str(task)!r} has no gradient, so the model cannot learn from it. Compute it from the output with "
            f"torch functions, without detach(), item(), numpy() or no_grad()."
        )


def tensors(*values: Any) -> bool:
    """Return whether all values are tensors."""
    return all(isinstance(value, Tensor) for value in values)


def unteachable(task: Task) -> str:
    """Make the message for a task that does not define how a model learns from a teacher."""
    return (
        f"task {str(task)!r} does not define how a model learns from a teacher. Use a method without a teacher (leave out distilled), "
        f"put the teacher's outputs into the loss of the task, or derive a task of your own with taught = True and imitation()."
    )


def unsmoothed(task: Task, label_smoothing: float) -> None:
    """Check that label smoothing is 0, for tasks without labels to smooth.

    Raises:
        TrainingError: If ``label_smoothing`` is not 0.
    """
    if label_smoothing:
        raise TrainingError(
            f"task {str(task)!r} has no labels to smooth, found label smoothing {label_smoothing}. Set label_smoothing to 0."
        )


def mismatch(task: Task, output: Any, target: Any) -> str:
    """Make the message for an output and a target that do not fit together."""
    return (
        f"task {str(task)!r} takes {task.targets}; found output {shown(output)} and target {shown(target)}. Pass the output "
        f"that the task reads, or set the task that fits these outputs: sparsify.attach(..., task=...)."
    )
