"""``eliminate-dead-code``: remove nodes that nothing reads and, once masks are folded, state that nothing reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sparsify.ir import Program, Stage, surgery
from sparsify.passes.base import UNCHANGED, Effect, Kept, Pass, PassLog


@dataclass(frozen=True)
class EliminateDeadCode(Pass):
    """Erase nodes without users and without side effects; after `fold-masks` also the state that no phase reads."""

    name: ClassVar = "eliminate-dead-code"
    requires: ClassVar = tuple(Stage)
    effects: ClassVar = Effect.GRAPH | Effect.NAMES

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return {"train": UNCHANGED, "eval": UNCHANGED}

    def run(self, program: Program) -> PassLog:
        log = PassLog(self.name)
        for phase in program.phases:
            for name in surgery.erase_dead(program, phase):
                log.change(f"%{name} of {phase}")
        if program.stage in (Stage.FOLDED, Stage.DEPLOYED):
            for name in surgery.drop_unread(program):
                log.change(name)
        return log
