"""``insert-gradient-taps``: a node per masked weight that records the dense gradient when armed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sparsify.errors import PassError
from sparsify.ir import GradientTap, Program, Stage, surgery
from sparsify.ir.nodes import MASK_OPERATORS
from sparsify.ir.traits import state_name
from sparsify.passes.base import UNCHANGED, Effect, Kept, Pass, PassLog


@dataclass(frozen=True)
class InsertGradientTaps(Pass):
    """Route every masked weight of the train phase through a `GradientTap` called ``<weight>_tap``.

    A weight that is read through several masks (tied names) has one tap, which sums their gradients. Disarmed taps cost nothing.
    """

    name: ClassVar = "insert-gradient-taps"
    requires: ClassVar = (Stage.MASKED,)
    effects: ClassVar = Effect.TRAIN_GRAPH | Effect.NAMES

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return {"train": UNCHANGED, "eval": UNCHANGED}

    def run(self, program: Program) -> PassLog:
        log = PassLog(self.name)
        if program.taps():
            raise PassError(f"{self.name}: {program.name!r} already has gradient taps.")
        for weight in program.masks():
            surgery.add_state(program, f"{weight}_tap", GradientTap())
            log.change(weight)
        for node in list(program.phases["train"].graph.nodes):
            if node.target in MASK_OPERATORS:
                weight = state_name(node, "mask").removesuffix("_mask")
                surgery.reroute(node, surgery.call_after(program, "train", node, f"{weight}_tap", (node,)))
        return log
