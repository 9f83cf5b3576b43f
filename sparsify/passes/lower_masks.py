"""``lower-masks``: read weights directly instead of multiplying by the mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sparsify.errors import PassError
from sparsify.ir import PHASES, Program, Stage, surgery
from sparsify.ir.nodes import MASK_OPERATORS, apply_mask, masked_view
from sparsify.ir.traits import argument
from sparsify.ir.verifier import count_stray
from sparsify.ir.weight_reads import is_tap
from sparsify.passes.base import UNCHANGED, Effect, Kept, Pass, PassLog


@dataclass(frozen=True)
class LowerMasks(Pass):
    """Replace ``weight * mask`` by a view of the weight with a masked gradient: same outputs and gradients, bit for bit.

    If a tap follows, the tap masks the gradient. Masks that are already lowered stay unchanged, unless a tap was inserted since. This
    requires that inactive weights are exactly 0, which a trainer ensures after every step.

    Raises:
        PassError: If an inactive weight is not 0.
    """

    name: ClassVar = "lower-masks"
    requires: ClassVar = (Stage.MASKED,)
    effects: ClassVar = Effect.GRAPH

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return {"train": UNCHANGED, "eval": UNCHANGED}

    def run(self, program: Program) -> PassLog:
        log = PassLog(self.name)
        for weight, mask in program.masks().items():
            stray = count_stray(program.get_parameter(weight), mask)
            if stray:
                raise PassError(
                    f"{self.name}: {weight!r} has {stray} inactive weights that are not 0; reading it directly would "
                    f"change the outputs. Attach a method (sparsify.attach zeroes them) or fold-masks instead."
                )
        for phase in PHASES:
            module = program.phases[phase]
            for node in module.graph.nodes:
                if node.target not in MASK_OPERATORS:
                    continue
                taps = [user for user in node.users if is_tap(module, user) and len(user.args) == 1]
                if node.target is apply_mask or taps:  # taps may be inserted after masks were lowered
                    surgery.replace_target(node, masked_view)
                    for tap in taps:
                        surgery.append_arguments(tap, argument(node, "mask"))
                    if taps:
                        surgery.set_argument(node, "gradient", "tapped")
                    log.change(node.name)
        return log
