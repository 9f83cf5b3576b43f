"""``fold-masks``: bake masks into the weights and remove them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsify.ir import PHASES, Program, Stage, surgery
from sparsify.ir.nodes import MASK_OPERATORS, apply_random_mask
from sparsify.passes.base import Effect, Pass, PassLog, Preserves


@dataclass(frozen=True)
class FoldMasks(Pass):
    """Set inactive weights to 0, then remove every mask, random mask and hook from both phases."""

    name: ClassVar = "fold-masks"
    requires: ClassVar = (Stage.MASKED,)
    ensures: ClassVar = Stage.FOLDED
    effects: ClassVar = Effect.GRAPH | Effect.NAMES | Effect.WEIGHTS
    preserves: ClassVar = Preserves.OUTPUTS_EXACTLY

    def run(self, program: Program) -> PassLog:
        log, sites, hooks = PassLog(self.name), program.mask_sites(), program.hooks()
        hidden = program.random_mask_sites()
        with torch.no_grad():
            for site in sites:
                program.get_parameter(site.weight).masked_fill_(~program.get_buffer(site.mask), 0.0)
                log.change(site.weight)
        for phase in PHASES:
            for node in list(program.phases[phase].graph.nodes):
                if node.op == "call_module" or node.target in (*MASK_OPERATORS, apply_random_mask):
                    surgery.bypass(program, phase, node, node.args[0])
            surgery.erase_dead(program, phase)
        for site in sites:
            surgery.remove_state(program, site.mask)
        for name in (*(site.visible for site in hidden), *hooks):
            surgery.remove_state(program, name)
        return log
