"""``deploy``: training is over, and only the eval phase is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sparsify.ir import Program, Stage, surgery
from sparsify.passes.base import CHANGED, UNCHANGED, Effect, Kept, Pass, PassLog


@dataclass(frozen=True)
class Deploy(Pass):
    """End training: drop the train phase, and dead nodes, hooks, parameters and buffers that the eval phase does not need.

    Passes that make a program fast rewrite one graph after it. The program is in eval mode, and ``train()`` is refused from here on.

    Examples:
        >>> import torch
        >>> import sparsify as sp
        >>> program = sp.trace(torch.nn.Linear(8, 4), torch.rand(2, 8))
        >>> deployed = sp.Pipeline.parse("insert-masks{density=0.5} | fold-masks | deploy")(program)
        >>> deployed.stage.value, list(deployed.phases)
        ('deployed', ['eval'])
    """

    name: ClassVar = "deploy"
    requires: ClassVar = (Stage.TRACED, Stage.FOLDED)
    ensures: ClassVar = Stage.DEPLOYED
    effects: ClassVar = Effect.GRAPH | Effect.NAMES

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return {"train": CHANGED, "eval": UNCHANGED}

    def run(self, program: Program) -> PassLog:
        log = PassLog(self.name)
        log.change("train")
        for name in surgery.drop_train(program):
            log.change(name)
        return log
