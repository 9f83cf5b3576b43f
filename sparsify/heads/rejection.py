"""The head that adds ``accept``: whether an answer is sure enough to be given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsify.heads.base import Call, Fitted, Head, HeldOut, State
from sparsify.parts.rejection import acceptance
from sparsify.tasks import Shape, Task

NOTHING = 2.0
"""Threshold that no probability reaches."""
aten = torch.ops.aten


@dataclass(frozen=True)
class Accept(Head):
    """Add ``accept``, bool [N]: whether the highest calibrated probability reaches a threshold.

    The threshold is the lowest at which at most a share ``risk`` of the accepted answers is wrong, but for a probability of ``doubt``, for
    samples like the held-out ones (`sparsify.parts.rejection.acceptance`).

    Attributes:
        risk: share of accepted answers that may be wrong, in (0, 1).
        doubt: probability that this share is larger, in (0, 1).
    """

    name: ClassVar = "accept"
    outputs: ClassVar = ("accept",)
    beside: ClassVar = ("accept",)
    buffers: ClassVar = {"threshold": 0}
    reads: ClassVar = ("probabilities",)
    tasks: ClassVar = ("classification",)
    unfitted: ClassVar = "no answer is accepted"

    risk: float = 0.05
    doubt: float = 0.1

    def __post_init__(self) -> None:
        for name in ("risk", "doubt"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is a share in (0, 1); found {getattr(self, name):g}")

    def identity(self, shape: Shape) -> dict[str, Tensor]:
        return {"threshold": torch.tensor(NOTHING)}

    def apply(self, call: Call, output: Any, state: Mapping[str, Any], task: Task | type[Task]) -> tuple[Any, ...]:
        return (call(aten.ge.Tensor, call(aten.amax.default, output, [1]), state["threshold"]),)

    def fit(self, held: HeldOut, before: State) -> Fitted:
        confidence, answer = held.read(self).max(1)
        answers = held.judged[1]
        found = acceptance(confidence, answer == answers, self.risk, self.doubt)
        threshold = torch.tensor(min(found.threshold, NOTHING), dtype=torch.float64)
        note = None
        if not found.accepted:
            note = (
                f"not possible: no part of the {len(answers)} held-out samples is known to be wrong in at most {self.risk:g}; no answer is "
                f"accepted"
            )
        figures = {
            "threshold": float(threshold),
            "coverage": found.accepted / len(answers),
            "risk": found.wrong / found.accepted if found.accepted else 0.0,
            "bound": found.bound,
        }
        return Fitted({"threshold": threshold}, note, figures)

    def told(self, before: State, fitted: Fitted) -> str:
        return "threshold of accepted answers fitted again"
