"""``set-steps``: let a spiking network run over another number of steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sparsify.errors import PassError
from sparsify.ir import Program, Stage, TensorSpec, surgery
from sparsify.ir.axes import shape_of
from sparsify.ir.dimensions import BATCH, divided, multiplied
from sparsify.ir.neurons import lif
from sparsify.ir.single_step import step_count
from sparsify.ir.traits import has_argument, kind_of
from sparsify.passes.base import CHANGED, Effect, Kept, Pass, PassLog
from sparsify.passes.options import Range, option


@dataclass(frozen=True)
class SetSteps(Pass):
    """Change the number of steps of a spiking network; weights, leaks and thresholds stay.

    Training at 5 steps, then at 4, 3, 2 and 1 from the weights, leaks and thresholds of the stage before is IIR-SNN (Chowdhury et al. 2021,
    arXiv:2110.05929). With one step, a layer of neurons compares its current with its threshold, and nothing else is left of it.

    Raises:
        PassError: If the program has no neurons, or lays steps out itself.
    """

    name: ClassVar = "set-steps"
    requires: ClassVar = tuple(Stage)
    effects: ClassVar = Effect.GRAPH

    steps: int = option(1, "steps of time", within=Range(1, 4096))

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return dict.fromkeys(("train", "eval"), CHANGED)

    def run(self, program: Program) -> PassLog:
        log, before = PassLog(self.name), step_count(program)
        for phase in program.phases.values():
            timed = set[object]()
            for node in phase.graph.nodes:
                known = kind_of(node) in ("neuron", "steps")
                if known and has_argument(node, "steps"):
                    surgery.set_argument(node, "steps", self.steps)
                if node.target is lif:
                    log.change(node.name)
                if (known or not timed.isdisjoint(node.all_input_nodes)) and isinstance(
                    node.meta.get("spec"), TensorSpec
                ):
                    timed.add(node)
                    sizes = [divided(size, BATCH, before) for size in shape_of(node)]
                    if sizes != list(shape_of(node)):
                        surgery.reshape_spec(node, [multiplied(size, BATCH, self.steps) for size in sizes])
        if not log.changed:
            raise PassError(
                f"{self.name}: {program.name!r} has no layers of neurons. Make it spiking first, with spiking{{steps=4}}."
            )
        return log
