"""``average-steps``: choose what a spiking network averages over its steps of time in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsify.errors import PassError
from sparsify.ir import Program, Stage, surgery
from sparsify.ir.axes import shape_of
from sparsify.ir.neurons import mean_of_steps
from sparsify.ir.traits import input_of
from sparsify.passes.base import CHANGED, UNCHANGED, Effect, Kept, Pass, PassLog


@dataclass(frozen=True)
class AverageSteps(Pass):
    """Let the train phase of a spiking classifier average the log-probabilities of its steps in place of their logits.

    The output at the label is then minus the mean of the cross-entropies of all steps, which is the loss of Kim et al. 2022 (arXiv:
    2207.01382). The eval phase still averages logits.

    Raises:
        PassError: If the train phase does not average logits [N, K] over steps.
    """

    name: ClassVar = "average-steps"
    requires: ClassVar = (Stage.TRACED, Stage.MASKED)
    effects: ClassVar = Effect.TRAIN_GRAPH

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return {"train": CHANGED, "eval": UNCHANGED}

    def run(self, program: Program) -> PassLog:
        log = PassLog(self.name)
        for node in [n for n in program.phases["train"].graph.nodes if n.target is mean_of_steps]:
            value = input_of(node)
            if len(shape_of(value)) != 2 or value.target is torch.ops.aten.log_softmax.int:
                continue
            logs = surgery.call_after(program, "train", value, torch.ops.aten.log_softmax.int, (value, 1))
            surgery.reroute(value, logs, users=[node])
            log.change(node.name)
        if not log.changed:
            raise PassError(
                f"{self.name}: the train phase of {program.name!r} averages no logits [N, K] over steps. Make the network "
                f"spiking first, with spiking{{steps=4}}."
            )
        return log
