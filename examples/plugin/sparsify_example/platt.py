"""A calibration head: Platt scaling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsify.heads import Call, Fitted, HeldOut, Scaling, State
from sparsify.parts.calibrators import fit_vector_scaling
from sparsify.tasks import Shape

aten = torch.ops.aten


@dataclass(frozen=True)
class Platt(Scaling):
    """A slope and an intercept for the logit of yes: sigmoid(a * z + b) (Platt 1999)."""

    name: ClassVar = "platt"
    buffers: ClassVar = {"slope": 0, "intercept": 0}
    tasks: ClassVar = ("binary",)

    def identity(self, shape: Shape) -> dict[str, Tensor]:
        return {"slope": torch.ones(()), "intercept": torch.zeros(())}

    def scaled(self, call: Call, output: Any, state: Mapping[str, Any]) -> Any:
        return call(aten.add.Tensor, call(aten.mul.Tensor, output, state["slope"]), state["intercept"])

    def fit(self, held: HeldOut, before: State) -> Fitted:
        scale, bias = fit_vector_scaling(*held.judged)  # of the scores of no, which are 0, and of yes
        return Fitted({"slope": scale[1], "intercept": bias[1] - bias[0]})
