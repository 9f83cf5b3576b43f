"""The loss of a batch as a function that may be called again: for the step, for probes, and for sweeps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparsify.errors import TrainingError
from sparsify.ir import Program
from sparsify.methods import Method
from sparsify.parts.attacks import perturbed

Objective = Callable[[Tensor, Tensor], Tensor]


class BatchLoss:
    """The loss of one batch; calling it runs the program once. An attack runs again with each call, from the same start.

    Args:
        program: in train mode.
        method: whose objective and attack are used.
        x: inputs [N, ...].
        y: labels [N].
        counts: passes of an attack are counted there.
        smoothing: of the labels, in [0, 1).
        bf16: run the forward pass in mixed precision.

    Attributes:
        logits: [N, K] of the first call.
    """

    def __init__(
        self,
        program: Program,
        method: Method,
        x: Tensor,
        y: Tensor,
        counts: dict[str, int],
        *,
        smoothing: float,
        bf16: bool,
    ) -> None:
        self._program, self._method, self._x, self._y = program, method, x, y
        self._counts, self._smoothing, self._bf16 = counts, smoothing, bf16
        self._start: Tensor | None = None
        if method.attack is not None:
            if not x.is_floating_point():
                raise TrainingError(f"method {method.name!r} attacks inputs and needs numbers, found {x.dtype}.")
            self._start = (2 * torch.rand_like(x) - 1) * method.attack.radius
        self.logits: Tensor | None = None

    def __call__(self) -> Tensor:
        x = self._attacked()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self._bf16):
            output = self._program(x)
        logits = self._program.logits(output).float()
        if self.logits is None:
            self.logits = logits.detach()
        if self._method.objective is not None:
            return self._method.objective(output, self._y)
        return nn.functional.cross_entropy(logits, self._y, label_smoothing=self._smoothing)

    def _attacked(self) -> Tensor:
        attack = self._method.attack
        if attack is None or self._start is None:
            return self._x
        index = self._program.output_names("eval").index("logits")

        def loss(x: Tensor) -> Tensor:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self._bf16):
                logits = self._program.run_phase("eval", x)[index]
            return nn.functional.cross_entropy(logits.float(), self._y, reduction="sum")

        for key in ("forwards", "backwards"):
            self._counts[key] += attack.iterations
        return perturbed(loss, self._x, self._start, attack)
