"""The head of h-calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsify.heads.base import Call, Fitted, Head, HeldOut, State
from sparsify.heads.scaling import rough, usable
from sparsify.parts.h_calibration import HIGHEST, SEGMENTS, fit_slopes
from sparsify.tasks import Shape, Task

aten = torch.ops.aten


@dataclass(frozen=True)
class HCalibration(Head):
    """A rising map of log p, fitted by the loss of h-calibration (Huang et al. 2025, arXiv:2506.17968). It keeps every decision.

    The probabilities are softmax(-f(-log p)). f is continuous and piecewise linear, with 50 segments of equal length on [0, 100], of which
    a fit may join neighbours, and slopes above 0. `sparsify.parts.h_calibration.fit_slopes` says how they are found and what bounds time.
    The buffers are where segments start, and their slopes, [50]. A fit that is no better than a temperature is that temperature.

    Examples:
        >>> import torch
        >>> from sparsify.heads import HCalibration, run
        >>> from sparsify.tasks import Classification
        >>> head, logits = HCalibration(), torch.tensor([[2.0, 0.0]])
        >>> state = head.identity(("N", 2))
        >>> torch.allclose(head.apply(run, logits, state, Classification)[0], logits.softmax(1))
        True
    """

    name: ClassVar = "h-calibration"
    outputs: ClassVar = ("probabilities",)
    buffers: ClassVar = {"starts": 1, "segment_slopes": 1}
    tasks: ClassVar = ("classification",)
    unfitted: ClassVar = "the probabilities are those of the model as trained"

    def identity(self, shape: Shape) -> dict[str, Tensor]:
        count = SEGMENTS[-1]
        return {"starts": HIGHEST / count * torch.arange(count), "segment_slopes": torch.ones(count)}

    def apply(self, call: Call, output: Any, state: Mapping[str, Any], task: Task | type[Task]) -> tuple[Any, ...]:
        u = call(aten.neg.default, call(aten.log_softmax.int, output, task.class_dim))
        risen = call(aten.sub.Tensor, call(aten.unsqueeze.default, u, -1), state["starts"])
        parts = call(
            aten.mul.Tensor, call(aten.clamp.default, risen, 0.0, HIGHEST / SEGMENTS[-1]), state["segment_slopes"]
        )
        found = call(aten.neg.default, call(aten.sum.dim_IntList, parts, [-1]))
        return (call(aten.softmax.int, found, task.class_dim),)

    def fit(self, held: HeldOut, before: State) -> Fitted:
        found = fit_slopes(*held.judged)
        figures = {
            "segments": float(found.segments),
            "steps": float(found.steps),
            "nll_apart_before": found.nll_before,
            "nll_apart_after": found.nll_after,
        }
        values = {"starts": self.identity(())["starts"].double(), "segment_slopes": usable(found.slopes)}
        return Fitted(values, rough(held), figures)

    def told(self, before: State, fitted: Fitted) -> str:
        return "h-calibration fitted again"
