"""The head of a regression: bounds that contain the target of a new sample with a given probability."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsify.heads.base import Call, Fitted, Head, HeldOut, State
from sparsify.parts import conformal
from sparsify.tasks import Shape, Task

EXACT = 1 + 1e-6
"""Tolerance, as a factor, for the rounding of a reach that was stored in single precision."""
aten = torch.ops.aten


@dataclass(frozen=True)
class Interval(Head):
    """Prediction minus and plus a reach, one for each output of a sample, by split conformal prediction (`sparsify.parts.conformal`).

    If the number of outputs per sample varies, all outputs share one reach.
    """

    name: ClassVar = "interval"
    outputs: ClassVar = ("lower", "upper")
    buffers: ClassVar = {"reach": None}
    unfitted: ClassVar = "the intervals have no width"

    def identity(self, shape: Shape) -> dict[str, Tensor]:
        sizes = [size for size in shape[1:] if isinstance(size, int)]
        return {"reach": torch.zeros(sizes if len(sizes) == len(shape) - 1 else ())}

    def apply(self, call: Call, output: Any, state: Mapping[str, Any], task: Task | type[Task]) -> tuple[Any, ...]:
        return call(aten.sub.Tensor, output, state["reach"]), call(aten.add.Tensor, output, state["reach"])

    def fit(self, held: HeldOut, before: State) -> Fitted:
        reach, errors = before["reach"], _errors(held, held.output, before)
        needed = conformal.needed(held.level)
        note = f"a rough estimate, from {len(errors)} held-out samples where {needed} are needed"
        found = conformal.reach(errors, held.level).reshape(reach.shape)
        return Fitted({"reach": found}, note if len(errors) < needed else None)

    def refit(self, held: HeldOut, before: State, program: Tensor) -> Fitted:
        """Find the reach with which the file's intervals contain as many targets as the program's.

        Raises:
            ValueError: If the program's intervals contain no target of some output.
        """
        reach = before["reach"]
        first, second = (
            error.reshape(len(error), -1)
            for error in (_errors(held, output, before) for output in (program, held.output))
        )
        inside = (first <= reach.reshape(-1) * EXACT).sum(0)
        if not bool(inside.all()):
            raise ValueError("the program's intervals hold none of the held-out targets of an output")
        return Fitted({"reach": second.sort(0).values.gather(0, inside[None] - 1)[0].reshape(reach.shape)})

    def told(self, before: State, fitted: Fitted) -> str:
        return "intervals fitted again"


def _errors(held: HeldOut, output: Tensor, state: State) -> Tensor:
    """Compute absolute errors [N, ...], or the largest error of each sample, [N], if all its outputs share one reach."""
    errors = (output - held.target.double().reshape(output.shape)).abs()
    shared = state["reach"].numel() == 1 and errors[:1].numel() > 1
    return errors.flatten(1).amax(1) if shared else errors
