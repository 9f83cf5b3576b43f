"""The loss of a batch as a function that may be called again: for the step, for probes, and for sweeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sparsify.errors import TrainingError
from sparsify.ir import Program
from sparsify.methods import Method
from sparsify.parts.attacks import perturbed
from sparsify.parts.trees import Tree, mapped, tensors
from sparsify.tasks import Task
from sparsify.training.meaning import in_float32


class BatchLoss:
    """The loss of one batch; calling it runs the program once.

    Args:
        program: in train mode.
        criterion: of what the program returned, the target, and ``inputs=`` what it was called with.
        inputs: [N, ...], as `Program.call` takes them; a function gives them anew for each call.
        y: their target.
        reads: the output that decisions are made from; None: all of them.
        bf16: run the forward pass in mixed precision.

    Attributes:
        output: what ``reads`` names in the first call; None before it.
    """

    def __init__(
        self,
        program: Program,
        criterion: Callable[..., Tensor],
        inputs: Tree | Callable[[], Tree],
        y: Tree,
        *,
        reads: str | None,
        bf16: bool,
    ) -> None:
        self._program, self._criterion, self._inputs, self._y = program, criterion, inputs, y
        self._reads, self._bf16 = reads, bf16
        self.output: Tree = None

    def __call__(self) -> Tensor:
        x: Any = self._inputs() if callable(self._inputs) else self._inputs
        with torch.autocast(tensors(x)[0].device.type, torch.bfloat16, enabled=self._bf16):
            output = self._program.call(x)
        if self.output is None:
            found = self._program.reading(self._reads, "train", pytree.tree_leaves(output))
            self.output = mapped(Tensor.detach, found)
        return self._criterion(output, self._y, inputs=x)


def attacked(
    method: Method, program: Program, task: Task, x: Tree, y: Tree, counts: dict[str, int], *, bf16: bool
) -> Callable[[], Tensor]:
    """Inputs under the attack of a method: made anew with each call, for the weights as they are then, from the same random start.

    Args:
        method: which has an attack.
        program: which is attacked in its eval phase.
        task: whose loss is raised.
        x: inputs [N, ...], float, of one tensor.
        y: their target.
        counts: ``forwards`` and ``backwards`` are counted up.
        bf16: run the forward pass in mixed precision.

    Raises:
        TrainingError: If the inputs are no numbers in one tensor.
    """
    attack = method.attack
    assert attack is not None
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = x.dtype if isinstance(x, Tensor) else f"a {type(x).__name__} of inputs"
        raise TrainingError(f"method {method.name!r} attacks inputs and needs numbers in one tensor, found {found}.")
    start = (2 * torch.rand_like(x) - 1) * attack.radius

    def loss(at: Tensor) -> Tensor:
        with torch.autocast(at.device.type, torch.bfloat16, enabled=bf16):
            leaves = program.run_phase("eval", at)
        return task.loss(mapped(in_float32, program.reading(task.trained_on, "eval", leaves)), y)

    def inputs() -> Tensor:
        for key in ("forwards", "backwards"):
            counts[key] += attack.iterations
        return perturbed(loss, x, start, attack)

    return inputs
