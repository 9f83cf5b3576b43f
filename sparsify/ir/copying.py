"""Copies of programs, and views: other graphs over the same state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

from sparsify.ir.compaction import expand
from sparsify.ir.phase import copy_graph
from sparsify.ir.state import clone_state

if TYPE_CHECKING:
    from sparsify.ir.program import Program


def copied(program: Program, memo: dict[int, Any]) -> Program:
    """Do what `Program.copied` says."""
    copy = _made(program, clone_state(program, memo), program.phases).train(program.training)
    copy.__dict__.update(unfinished=program.unfinished, task=program.task)
    memo[id(program)] = copy
    expand(copy)
    return copy


def viewed(program: Program, phase: str) -> Program:
    """Make a program of one phase, in a graph of its own, over the parameters and buffers of ``program`` themselves."""
    view = _made(program, program, (phase,))
    view.__dict__.update(task=program.task)
    return view


def _made(program: Program, state: nn.Module, phases: Iterable[str]) -> Program:
    """Make a program over ``state`` with copies of graphs of ``program``."""
    return type(program)(
        state,
        {phase: copy_graph(program.phases[phase].graph) for phase in phases},
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
    )
