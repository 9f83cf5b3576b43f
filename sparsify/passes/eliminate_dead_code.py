"""``eliminate-dead-code``: drop nodes nobody reads, and state nobody reads once the program is folded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sparsify.ir import PHASES, Program, Stage, surgery
from sparsify.passes.base import UNCHANGED, Effect, Kept, Pass, PassLog


@dataclass(frozen=True)
class EliminateDeadCode(Pass):
    """Erase nodes without users and without side effects; of a folded program also the state neither phase reads."""

    name: ClassVar = "eliminate-dead-code"
    requires: ClassVar = (Stage.TRACED, Stage.MASKED, Stage.FOLDED)
    effects: ClassVar = Effect.GRAPH | Effect.NAMES

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return {"train": UNCHANGED, "eval": UNCHANGED}

    def run(self, program: Program) -> PassLog:
        log = PassLog(self.name)
        for phase in PHASES:
            for name in surgery.erase_dead(program, phase):
                log.change(f"%{name} of {phase}")
        if program.stage is Stage.FOLDED:
            nodes = [node for phase in PHASES for node in program.phases[phase].graph.nodes if node.op == "get_attr"]
            read = {id(program.tensor(str(node.target))) for node in nodes}
            state = [*program.named_parameters(remove_duplicate=False), *program.named_buffers(remove_duplicate=False)]
            for name, value in state:
                if id(value) not in read:
                    surgery.remove_state(program, name)
                    log.change(name)
        return log
