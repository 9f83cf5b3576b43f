"""A phase that multiplies each weight by its mask only when it is read, so that few masked copies of weights are held at a time."""

from __future__ import annotations

from torch import fx

from sparsify.ir import Program
from sparsify.ir.nodes import MASK_OPERATORS
from sparsify.ir.phase import Phase, copy_graph


def with_late_masks(program: Program, phase: str) -> Phase:
    """A phase of a program over the same state, its mask nodes moved to just before their first reader.

    Traced graphs begin with all weights and masks; run in that order, a second copy of every masked weight is held at once.
    """
    graph = copy_graph(program.phases[phase].graph)
    place = {node: index for index, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.target in MASK_OPERATORS and node.users:
            first: fx.Node = min(node.users, key=place.__getitem__)
            first.prepend(node)
    return Phase(program, graph, f"{program.name}_{phase}")
