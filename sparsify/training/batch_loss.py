"""The loss of a batch as a function that may be called again: for the step, for probes, and for sweeps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsify.errors import TrainingError
from sparsify.parts.attacks import perturbed
from sparsify.training.state import SparseTrainer


class BatchLoss:
    """The method's loss of one batch; calling it runs the program once. An attack runs again with each call, from the same start.

    Args:
        trainer: of a program in train mode; its method's loss and attack are used, and passes of an attack counted in its counts.
        x: inputs [N, ...].
        y: labels [N].
        smoothing: of the labels, in [0, 1).
        bf16: run the forward pass in mixed precision.

    Attributes:
        logits: [N, K] of the first call.
    """

    def __init__(self, trainer: SparseTrainer, x: Tensor, y: Tensor, *, smoothing: float, bf16: bool) -> None:
        self._trainer, self._x, self._y = trainer, x, y
        self._smoothing, self._bf16 = smoothing, bf16
        self._start: Tensor | None = None
        method = trainer.method
        if method.attack is not None:
            if not x.is_floating_point():
                raise TrainingError(f"method {method.name!r} attacks inputs and needs numbers, found {x.dtype}.")
            self._start = (2 * torch.rand_like(x) - 1) * method.attack.radius
        self.logits: Tensor | None = None

    def __call__(self) -> Tensor:
        program, x = self._trainer.program, self._attacked()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self._bf16):
            output = program(x)
        if self.logits is None:
            self.logits = program.logits(output).detach()
        return self._trainer.loss(output, self._y, inputs=x, label_smoothing=self._smoothing)

    def _attacked(self) -> Tensor:
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
