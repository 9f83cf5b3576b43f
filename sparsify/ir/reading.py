"""Selects from the flat outputs of a program what a task reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils import _pytree as pytree

from sparsify.arguments import found
from sparsify.errors import TraceError

if TYPE_CHECKING:
    from sparsify.ir.program import Program


def reading(program: Program, name: str | None, phase: str, leaves: Sequence[Any]) -> Any:
    """Do what `Program.reading` says."""
    if name is None:
        spec = program.out_specs[phase]
        return pytree.tree_unflatten(list(leaves[: spec.num_leaves]), spec)
    names = program.output_names(phase)
    if name not in names:
        raise TraceError(
            f"program {program.name!r} returns {', '.join(names)} in {phase} mode, and {name!r} is not among them. Trace it for "
            f"its task: sparsify.trace(model, args, task=...), or name an output: outputs={{{name!r}: 0}}."
        )
    return leaves[names.index(name)]


def logits(program: Program, output: Any) -> Tensor:
    """Do what `Program.logits` says."""
    leaves = pytree.tree_leaves(output)
    phase = next(iter(program.phases))
    missing = program.out_specs[phase].num_leaves - len(leaves)
    read = None if missing > 0 else reading(program, "logits", phase, leaves)
    if not isinstance(read, Tensor):
        raise TraceError(
            f"program {program.name!r} returns {program.out_specs[phase].num_leaves} values, the logits among them, found {found(output)}. "
            f"Give what calling the program returned."
        )
    return read
