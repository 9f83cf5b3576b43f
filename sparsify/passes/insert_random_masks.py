"""``insert-random-masks``: in training, read each weight through a mask that is drawn anew at each step."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsify.errors import PassError
from sparsify.ir import Program, Stage, surgery
from sparsify.ir.nodes import MASK_OPERATORS, apply_random_mask
from sparsify.ir.sites import parameter_nodes
from sparsify.passes.base import CHANGED, UNCHANGED, Effect, Kept, Pass, PassLog
from sparsify.passes.options import Range, option


@dataclass(frozen=True)
class InsertRandomMasks(Pass):
    """Make training read each weight through a random mask: a bool buffer ``<weight>_visible``, all True until a trainer draws it.

    The random mask comes after the weight's own mask and before its tap, so the tap records the gradient of what the model read. In a
    program without masks, every weight that could have a mask gets a random one.

    Raises:
        PassError: If the program already has random masks, the rate is not in [0, 1), or a glob matches nothing.
    """

    name: ClassVar = "insert-random-masks"
    requires: ClassVar = (Stage.TRACED, Stage.MASKED)
    effects: ClassVar = Effect.TRAIN_GRAPH | Effect.NAMES

    rate: float = option(0.1, "share of the weights hidden at each step, in [0, 1)", within=Range(0, 1, open_high=True))
    rescale: bool = option(False, "divide visible weights by 1 - rate")
    weights: tuple[str, ...] = option((), "globs of weights; all that have a mask by default")

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return {"train": CHANGED if self.rescale else UNCHANGED, "eval": UNCHANGED}

    def run(self, program: Program) -> PassLog:
        log = PassLog(self.name)
        if program.random_mask_sites():
            raise PassError(f"{self.name}: {program.name!r} already has random masks.")
        masked = [site.weight for site in program.mask_sites()]
        known = masked or [site.name for site in program.maskable() if not site.skip]
        for glob in self.weights:
            if not any(fnmatch.fnmatchcase(name, glob) for name in known):
                raise PassError(f"{self.name}: weights={glob!r} matches none of {', '.join(known)}.")
        for name in known:
            if self.weights and not any(fnmatch.fnmatchcase(name, glob) for glob in self.weights):
                log.skip(name, "not among the weights asked for")
                continue
            surgery.add_state(program, f"{name}_visible", torch.ones_like(program.weight(name), dtype=torch.bool))
            log.change(name)
        for node, name in list(parameter_nodes(program, "train")):
            if name in log.changed:
                masks = [user for user in node.users if user.target in MASK_OPERATORS]
                for value in masks or [node]:
                    anchor = value.next
                    visible = surgery.state_node(program, "train", f"{name}_visible", before=anchor)
                    behind = visible if visible.prev is value else value
                    arguments = (value, visible, self.rate, self.rescale)
                    hidden = surgery.call_after(
                        program, "train", behind, apply_random_mask, arguments, spec=value.meta["spec"]
                    )
                    surgery.reroute(value, hidden)
        return log
