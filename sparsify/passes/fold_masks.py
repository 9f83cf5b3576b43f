"""``fold-masks``: bake masks into the weights and remove them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparsify.ir import PHASES, Program, Stage, surgery
from sparsify.ir.nodes import MASK_OPERATORS, apply_random_mask
from sparsify.ir.traits import input_of
from sparsify.passes.base import CHANGED, Effect, Kept, Pass, PassLog, Preserves


@dataclass(frozen=True)
class FoldMasks(Pass):
    """Set inactive weights to 0, then remove every mask, random mask and hook from both phases.

    Masks of weights that no phase reads any more (such as an unused head) are removed as well.

    Examples:
        >>> import torch
        >>> import sparsify as sp
        >>> program = sp.trace(torch.nn.Linear(8, 4), torch.rand(2, 8))
        >>> folded = sp.Pipeline.parse("insert-masks{density=0.5} | fold-masks")(program)
        >>> folded.masks(), int(folded.weight("weight").count_nonzero())
        ({}, 16)
    """

    name: ClassVar = "fold-masks"
    requires: ClassVar = (Stage.MASKED,)
    ensures: ClassVar = Stage.FOLDED
    effects: ClassVar = Effect.GRAPH | Effect.NAMES | Effect.WEIGHTS

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return {"train": CHANGED, "eval": Kept(Preserves.EXACTLY, Preserves.NOTHING)}

    def run(self, program: Program) -> PassLog:
        log, sites, hooks = PassLog(self.name), program.mask_sites(), program.hooks()
        hidden = program.random_mask_sites()
        for site in sites:
            _mask(program, site.weight, program.get_buffer(site.mask))
            log.change(site.weight)
        for phase in PHASES:
            for node in list(program.phases[phase].graph.nodes):
                if node.op == "call_module" or node.target in (*MASK_OPERATORS, apply_random_mask):
                    surgery.bypass(program, phase, node, input_of(node))
            surgery.erase_dead(program, phase)
        for name in dict.fromkeys((*(site.mask for site in sites), *_unread_masks(program, log))):
            surgery.remove_state(program, name)
        for name in (*(site.visible for site in hidden), *hooks):
            surgery.remove_state(program, name)
        return log


def _mask(program: Program, name: str, mask: Tensor) -> None:
    surgery.rewrite(program, name, program.get_parameter(name).detach().masked_fill(~mask, 0.0))


def _unread_masks(program: Program, log: PassLog) -> list[str]:
    """Find masks without a node, because nothing reads values computed from their weights, and apply them to these weights."""
    buffers, found = dict(program.named_buffers()), list[str]()
    for name, parameter in list(program.named_parameters(remove_duplicate=False)):
        mask = buffers.get(f"{name}_mask")
        if mask is None or mask.dtype is not torch.bool or mask.shape != parameter.shape:
            continue
        if name not in log.changed:
            _mask(program, name, mask)
            log.change(name)
        found.append(f"{name}_mask")
    return found
