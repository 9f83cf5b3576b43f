"""The loss of a batch as a function that may be called again: for the step, for probes, and for sweeps."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsify.errors import TrainingError
from sparsify.parts.attacks import perturbed
from sparsify.parts.trees import Tree, mapped, tensors
from sparsify.training.state import SparseTrainer


class BatchLoss:
    """The method's loss of one batch; calling it runs the program once. An attack runs again with each call, from the same start.

    Args:
        trainer: of a program in train mode; its method's loss and attack are used, and passes of an attack counted in its counts.
        x: inputs [N, ...], as `Program.call` takes them.
        y: their target.
        smoothing: of labels, in [0, 1).
        bf16: run the forward pass in mixed precision.

    Attributes:
        output: what the task reads of the first call; None before it.
    """

    def __init__(self, trainer: SparseTrainer, x: Tree, y: Tree, *, smoothing: float, bf16: bool) -> None:
        self._trainer, self._x, self._y = trainer, x, y
        self._smoothing, self._bf16 = smoothing, bf16
        self._start: Tensor | None = None
        method = trainer.method
        if method.attack is not None:
            if not isinstance(x, Tensor) or not x.is_floating_point():
                found = x.dtype if isinstance(x, Tensor) else f"a {type(x).__name__} of inputs"
                raise TrainingError(
                    f"method {method.name!r} attacks inputs and needs numbers in one tensor, found {found}."
                )
            self._start = (2 * torch.rand_like(x) - 1) * method.attack.radius
        self.output: Tree = None

    def __call__(self) -> Tensor:
        program, x = self._trainer.program, self._attacked()
        with torch.autocast(tensors(x)[0].device.type, torch.bfloat16, enabled=self._bf16):
            output = program.call(x)
        if self.output is None:
            found = program.reading(self._trainer.task.output, "train", pytree.tree_leaves(output))
            self.output = mapped(Tensor.detach, found)
        return self._trainer.loss(output, self._y, inputs=x, label_smoothing=self._smoothing)

    def _attacked(self) -> Tree:
        attack = self._trainer.method.attack
        if attack is None or self._start is None:
            return self._x
        program = self._trainer.program
        index = program.output_names("eval").index("logits")

        def loss(x: Tensor) -> Tensor:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self._bf16):
                logits = program.run_phase("eval", x)[index]
            return nn.functional.cross_entropy(logits.float(), self._y, reduction="sum")

        for key in ("forwards", "backwards"):
            self._trainer.counts[key] += attack.iterations
        return perturbed(loss, self._x, self._start, attack)
