"""``remove-random-masks``: make training read weights without random masks again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sparsify.ir import Program, Stage, surgery
from sparsify.ir.nodes import apply_random_mask
from sparsify.ir.traits import argument
from sparsify.passes.base import CHANGED, UNCHANGED, Effect, Kept, Pass, PassLog


@dataclass(frozen=True)
class RemoveRandomMasks(Pass):
    """Remove random masks and their buffers from the train phase; the eval phase has none."""

    name: ClassVar = "remove-random-masks"
    requires: ClassVar = (Stage.TRACED, Stage.MASKED)
    effects: ClassVar = Effect.TRAIN_GRAPH | Effect.NAMES

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return {"train": CHANGED, "eval": UNCHANGED}

    def run(self, program: Program) -> PassLog:
        log, sites = PassLog(self.name), program.random_mask_sites()
        for node in list(program.phases["train"].graph.nodes):
            if node.target is apply_random_mask:
                surgery.bypass(program, "train", node, argument(node, "weight"))
        if sites:
            surgery.erase_dead(program, "train")
        for site in sites:
            surgery.remove_state(program, site.visible)
            log.change(site.weight)
        return log
