"""The loss of a batch as a function that can be called repeatedly: by the step, by probes, and by sweeps."""

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
from sparsify.parts.mixing import MixedTarget, weighed
from sparsify.parts.trees import Tree, mapped, tensors
from sparsify.tasks import Task
from sparsify.training.meaning import in_float32


class BatchLoss:
    """The loss of one batch; calling it runs the program once.

    Args:
        program: in train mode.
        criterion: computes the loss from what the program returned, the target, and ``inputs=`` (the inputs of the call).
        inputs: inputs [N, ...] in any form that `Program.call` accepts, or a function that makes them for each call.
        y: the target of the batch, as prepared by the trainer.
        reads: name of the output that decisions are made from; None: all outputs.
        bf16: run the forward pass in mixed precision.

    Attributes:
        target: the target.
        output: the output ``reads`` of the first call; None before it.
    """

    def __init__(
        self,
        program: Program,
        criterion: Callable[..., Tensor],
        inputs: Tree | Callable[[], Tree],
        y: Tree | MixedTarget,
        *,
        reads: str | None,
        bf16: bool,
    ) -> None:
        self._program, self._criterion, self._inputs, self.target = program, criterion, inputs, y
        self._reads, self._bf16 = reads, bf16
        self.output: Tree = None

    def __call__(self) -> Tensor:
        x: Any = self._inputs() if callable(self._inputs) else self._inputs
        with torch.autocast(tensors(x)[0].device.type, torch.bfloat16, enabled=self._bf16):
            output = self._program.call(x)
            if self.output is None:
                found = self._program.reading(self._reads, "train", pytree.tree_leaves(output))
                self.output = mapped(Tensor.detach, found)
            return self._criterion(output, self.target, inputs=x)


def attacked(
    method: Method, program: Program, task: Task, x: Tree, y: Tree | MixedTarget, counts: dict[str, int], *, bf16: bool
) -> Callable[[], Tensor]:
    """Return a function that attacks inputs for the current weights; each call starts from the same random point.

    Args:
        method: a method with an attack.
        program: the attack uses its eval phase.
        task: the task whose loss the attack raises.
        x: inputs, one float tensor [N, ...].
        y: the target of the batch.
        counts: its ``forwards`` and ``backwards`` are incremented.
        bf16: run the forward pass in mixed precision.

    Raises:
        TrainingError: If the inputs are not a single tensor of floating-point numbers.
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
        found = mapped(in_float32, program.reading(task.trained_on, "eval", leaves))
        return weighed(lambda target: task.loss(found, target), y)

    def inputs() -> Tensor:
        for key in ("forwards", "backwards"):
            counts[key] += attack.iterations
        return perturbed(loss, x, start, attack)

    return inputs
