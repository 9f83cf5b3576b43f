"""Tests a task, such as one of your own, on samples: its methods must do what `Task` documents."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sparsify.errors import TaskError
from sparsify.figures.bootstrap import measured
from sparsify.parts.trees import rows_of
from sparsify.tasks.base import Task


def check_task(task: Task, output: Any, target: Any) -> None:
    """Test what `Task` documents on outputs and targets of at least two samples, such as a batch of an untrained model.

    Args:
        task: the task to test.
        output: floating-point tensor [N, ...]; if the task reads all outputs, such tensors in the model's structure.
        target: targets that fit, [N, ...]: a tensor, or tensors in any structure.

    Raises:
        TaskError: If a promise is broken; the message names the first one and what was found.

    Examples:
        >>> import torch
        >>> from sparsify.tasks import Classification, check_task
        >>> check_task(Classification(), torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))
    """
    before = [leaf.clone() for leaf in _tensors((output, target))]
    shape = tuple(output.shape) if isinstance(output, Tensor) else ()
    if not isinstance(task, Task):
        raise TaskError(f"a task is a sparsify.tasks.Task, found {type(task).__name__}. Derive it from Task.")
    _promise(
        task, not task.problem(target, shape), f"problem() rejects targets that fit: {task.problem(target, shape)}"
    )
    _loss(task, output, target)
    _figures(task, output, target)
    _decisions(task, output, target)
    changed = not all(map(torch.equal, before, _tensors((output, target))))
    _promise(task, not changed, "loss(), figures() or scores() changes the tensors it is given")
    _optional(task, output, target)


def _loss(task: Task, output: Any, target: Any) -> None:
    moving = pytree.tree_map(_leaf, output)
    value = task.loss(moving, target)
    _promise(task, isinstance(value, Tensor) and not value.ndim, f"loss() is not a scalar tensor: {value!r}")
    _promise(task, bool(value.isfinite()), f"loss() is {value.item()} for outputs that are finite")
    _promise(
        task,
        value.requires_grad,
        "loss() has no gradient; it should be computed from the output by differentiable functions",
    )
    leaves = [leaf for leaf in _tensors(moving) if leaf.requires_grad]
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    finite = all(g is None or bool(g.isfinite().all()) for g in gradients)
    moved = any(g is not None and bool(g.any()) for g in gradients)
    _promise(task, finite and moved, "the gradient of loss() is 0 everywhere, or not finite")
    _promise(task, torch.equal(value, task.loss(moving, target)), "loss() differs from call to call")


def _figures(task: Task, output: Any, target: Any) -> None:
    found = task.figures(output, target)
    _promise(task, bool(found), "figures() is empty; the first figure is the headline")
    wrong = {k: v for k, v in found.items() if not isinstance(k, str) or type(v) is not float}
    _promise(task, not wrong, f"figures() should map names to floats, found {wrong}")
    infinite = [name for name, value in found.items() if not math.isfinite(value)]
    _promise(task, len(infinite) < len(found), "no figure is a finite number; give samples that define them")
    again = task.figures(
        *pytree.tree_map(lambda leaf: leaf.flip(0) if isinstance(leaf, Tensor) else leaf, (output, target))
    )
    _promise(task, [*again] == [*found], f"figures() has other names or another order: {[*found]}, then {[*again]}")
    for name, value in found.items():
        same = math.isclose(value, again[name], rel_tol=1e-4, abs_tol=1e-6) or not math.isfinite(value)
        _promise(task, same, f"figure {name!r} depends on the order of samples: {value}, then {again[name]}")
        _promise(
            task,
            isinstance(task.higher_is_better(name), bool | None),
            f"higher_is_better({name!r}) is none of True, False and None",
        )


def _decisions(task: Task, output: Any, target: Any) -> None:
    scores, answers = task.scores(output), task.answers(target)
    _promise(task, (scores is None) == (answers is None), "scores() and answers() should both be None, or neither")
    if scores is None or answers is None:
        return
    shapes = f"{list(scores.shape)} and {list(answers.shape)}"
    fitting = scores.ndim == 2 and answers.shape == scores.shape[:1] and answers.dtype is torch.int64
    _promise(task, fitting, f"scores() [M, K] and answers() int64 [M] should have a row per decision, found {shapes}")
    within = bool(((answers >= -1) & (answers < scores.shape[1])).all())
    _promise(
        task,
        within,
        f"answers() should be -1 or a column of scores(), found {int(answers.min())} to {int(answers.max())}",
    )


def _optional(task: Task, output: Any, target: Any) -> None:
    """Check that a teacher equal to the model gives loss 0, and that drawing each sample once gives the headline figure."""
    if task.taught:
        value = task.imitation(pytree.tree_map(_leaf, output), output, target)
        kept = value.requires_grad and not value.ndim and abs(float(value.detach())) < 1e-5
        _promise(task, kept, f"imitation() of equal answers should be 0 with a gradient, found {value!r}")
    figure = task.resampled(output, target)
    if figure is not None:
        name, wanted = next(iter(task.figures(output, target).items()))
        found = measured(figure, rows_of(target))
        same = math.isclose(found, wanted, rel_tol=1e-4, abs_tol=1e-6) or math.isnan(wanted)
        _promise(task, same, f"resampled() of every sample once is {found}, and {name!r} is {wanted}")


def _leaf(value: Any) -> Any:
    moves = isinstance(value, Tensor) and value.is_floating_point()
    return value.detach().clone().requires_grad_() if moves else value


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def _promise(task: Task, kept: bool, broken: str) -> None:
    if not kept:
        raise TaskError(f"task {str(task)!r} breaks a promise: {broken}.")
