"""The head that mixes tempered, plain and uniform probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsify.heads.base import Call, Fitted, Head, HeldOut, State
from sparsify.heads.scaling import rough, usable
from sparsify.parts.calibrators import fit_ensemble_temperature
from sparsify.tasks import Shape, Task

aten = torch.ops.aten


@dataclass(frozen=True)
class EnsembleTemperature(Head):
    """A mixture w_1 softmax(z / T) + w_2 softmax(z) + w_3 / K (Zhang et al. 2020, arXiv:2003.07329). It keeps every decision.

    The weights are >= 0 and sum to 1; the buffer ``shares`` holds them. A decision is kept unless w_3 is 1, which makes all classes equal.

    Examples:
        >>> import torch
        >>> from sparsify.heads import EnsembleTemperature, run
        >>> from sparsify.tasks import Classification
        >>> state = {"temperature": torch.tensor(2.0), "shares": torch.tensor([0.0, 0.5, 0.5])}
        >>> (probabilities,) = EnsembleTemperature().apply(run, torch.tensor([[0.0, 0.0], [40.0, 0.0]]), state, Classification)
        >>> probabilities.tolist()
        [[0.5, 0.5], [0.75, 0.25]]
    """

    name: ClassVar = "ensemble-temperature"
    outputs: ClassVar = ("probabilities",)
    buffers: ClassVar = {"temperature": 0, "shares": 1}
    unfitted: ClassVar = "the probabilities are those of the model as trained"

    def identity(self, shape: Shape) -> dict[str, Tensor]:
        return {"temperature": torch.ones(()), "shares": torch.tensor([1.0, 0.0, 0.0])}

    def apply(self, call: Call, output: Any, state: Mapping[str, Any], task: Task | type[Task]) -> tuple[Any, ...]:
        plain = call(aten.softmax.int, output, task.class_dim)
        tempered = call(aten.softmax.int, call(aten.div.Tensor, output, state["temperature"]), task.class_dim)
        even = call(aten.mean.dim, plain, [task.class_dim], True)  # 1 / K, as probabilities sum to 1
        three = [tempered, plain, call(aten.expand_as.default, even, plain)]
        weighted = call(aten.mul.Tensor, call(aten.stack.default, three, -1), state["shares"])
        return (call(aten.sum.dim_IntList, weighted, [-1]),)

    def fit(self, held: HeldOut, before: State) -> Fitted:
        temperature, shares = fit_ensemble_temperature(*held.judged)
        values = {"temperature": temperature, "shares": shares}
        return Fitted(
            {name: usable(torch.tensor(value, dtype=torch.float64)) for name, value in values.items()}, rough(held)
        )
