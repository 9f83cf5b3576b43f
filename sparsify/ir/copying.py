"""Copies of programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparsify.ir.compaction import expand
from sparsify.ir.phase import copy_graph
from sparsify.ir.state import clone_state

if TYPE_CHECKING:
    from sparsify.ir.program import Program


def copied(program: Program, memo: dict[int, Any]) -> Program:
    """Do what `Program.copied` says."""
    copy = type(program)(
        clone_state(program, memo),
        {phase: copy_graph(module.graph) for phase, module in program.phases.items()},
        name=program.name,
        stage=program.stage,
        input_specs=program.input_specs,
        dynamic_batch=program.dynamic_batch,
        in_spec=program.in_spec,
        out_specs=program.out_specs,
        sizes=program.sizes,
        ranges=program.ranges,
        constants=program.constants,
        signature=program.signature,
    ).train(program.training)
    copy.__dict__.update(unfinished=program.unfinished, task=program.task)
    memo[id(program)] = copy
    expand(copy)
    return copy
