"""``lower-masks``: read weights directly instead of multiplying by the mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparsify.errors import PassError
from sparsify.ir import Program, Stage, surgery
from sparsify.ir.nodes import apply_mask, masked_view
from sparsify.passes.base import Effect, Pass, PassLog, Preserves


@dataclass(frozen=True)
class LowerMasks(Pass):
    """Replace ``weight * mask`` by a view of the weight whose gradient is masked: same outputs and gradients, bit for bit.

    It holds where inactive weights are exactly 0, which a trainer keeps true after every step.

    Raises:
        PassError: If an inactive weight is not 0.
    """

    name: ClassVar = "lower-masks"
    requires: ClassVar = (Stage.MASKED,)
    effects: ClassVar = Effect.GRAPH
    preserves: ClassVar = Preserves.OUTPUTS_EXACTLY

    def run(self, program: Program) -> PassLog:
        log = PassLog(self.name)
        for site in program.mask_sites():
            stray = int((program.get_parameter(site.weight).detach()[~program.get_buffer(site.mask)] != 0).sum())
            if stray:
                raise PassError(
                    f"{self.name}: {site.weight!r} has {stray} inactive weights that are not 0; reading it directly would "
                    f"change the outputs. Attach a method (sparsify.attach zeroes them) or fold-masks instead."
                )
        for module in program.phases.values():
            for node in module.graph.nodes:
                if node.target is apply_mask:
                    surgery.replace_target(node, masked_view)
                    log.change(node.name)
        return log
