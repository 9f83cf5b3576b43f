"""A pass: activations with a bound, which int8 files can hold in a known range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsify.ir import PHASES, Program, Stage, surgery
from sparsify.passes import CHANGED, Effect, Kept, Pass, PassLog, Range, option

aten = torch.ops.aten


@dataclass(frozen=True)
class BoundActivations(Pass):
    """Clamp what a ReLU returns from above, in both phases, as ReLU6 does."""

    name: ClassVar = "bound-activations"
    requires: ClassVar = (Stage.TRACED, Stage.MASKED)
    effects: ClassVar = Effect.GRAPH

    at: float = option(6.0, "the largest value that is let through", within=Range(0.0, open_low=True))

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return {"train": CHANGED, "eval": CHANGED}

    def run(self, program: Program) -> PassLog:
        log = PassLog(self.name)
        for phase in PHASES:
            for node in list(program.phases[phase].graph.nodes):
                if node.target in (aten.relu.default, aten.relu_.default):
                    bounded = surgery.call_after(
                        program, phase, node, aten.clamp_max.default, (node, self.at), spec=node.meta["spec"]
                    )
                    surgery.reroute(node, bounded)
                    log.change(f"{phase}: {node.name}")
        return log
