"""``record-randomness``: add a node that lets probes use the same dropout masks as the step they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sparsify.errors import PassError
from sparsify.ir import Program, RandomnessRecord, Stage, surgery
from sparsify.ir.traits import draws
from sparsify.passes.base import UNCHANGED, Effect, Kept, Pass, PassLog

RECORD = "randomness_record"


@dataclass(frozen=True)
class RecordRandomness(Pass):
    """Route the first input of the train phase through a `RandomnessRecord`, if the phase draws random numbers.

    A probe evaluates the batch of a step again with other weights. With the record it draws the same dropout masks, so that two gradients
    of one batch differ only because of their weights.

    Raises:
        PassError: If the program already has a record.
    """

    name: ClassVar = "record-randomness"
    requires: ClassVar = (Stage.TRACED, Stage.MASKED)
    effects: ClassVar = Effect.TRAIN_GRAPH | Effect.NAMES

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return {"train": UNCHANGED, "eval": UNCHANGED}

    def run(self, program: Program) -> PassLog:
        log = PassLog(self.name)
        if any(isinstance(hook, RandomnessRecord) for hook in program.hooks().values()):
            raise PassError(f"{self.name}: {program.name!r} already has a record of its randomness.")
        nodes = list(program.phases["train"].graph.nodes)
        if not any(map(draws, nodes)):
            log.skip("train", "it draws no random numbers")
            return log
        value = next(node for node in nodes if node.op == "placeholder")
        surgery.add_state(program, RECORD, RandomnessRecord())
        last = [node for node in nodes if node.op == "placeholder"][-1]
        record = surgery.call_after(program, "train", last, RECORD, (value,), spec=value.meta["spec"])
        surgery.reroute(value, record)
        log.change(value.name)
        return log
