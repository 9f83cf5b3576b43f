"""Replaces in-place operators of a phase by operators that return their result, if no other node can see the difference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from sparsify.ir import Program, TensorSpec, surgery
from sparsify.ir.traits import input_of, shares_memory

aten = torch.ops.aten


def make_functional(program: Program, phase: str) -> None:
    """Replace in-place operators; later readers of the changed value read the result instead.

    An operator stays in place if other values may share the memory that it writes, if it changes an input or the state of the program, or
    if ATen has no functional form with the same arguments.
    """
    place = {node: index for index, node in enumerate(program.phases[phase].graph.nodes)}
    for node in list(place):
        target = _functional(node)
        value = input_of(node)
        if target is None or not isinstance(value, fx.Node) or value.op != "call_function" or not _owned(value, node):
            continue
        later = [user for user in value.users if place[user] > place[node]]
        surgery.replace_target(node, target)
        surgery.reroute(value, node, users=later)


def _functional(node: fx.Node) -> Callable[..., Any] | None:
    """Find the functional overload with the same arguments; None if there is none, or the node is not an in-place operator."""
    written = node.target
    if (
        not isinstance(written, torch._ops.OpOverload)
        or not written._opname.endswith("_")
        or written.namespace != "aten"
    ):
        return None
    packet = getattr(aten, written._opname.removesuffix("_"), None)
    found = getattr(packet, written._overloadname, None) if packet is not None else None
    if found is None:
        return None
    wanted, given = ([(a.name, str(a.type)) for a in op._schema.arguments] for op in (found, written))
    specs = [value.meta.get("spec") for value in node.all_input_nodes]
    kinds = {spec.dtype for spec in specs if isinstance(spec, TensorSpec)}
    return found if wanted == given and len(kinds) == 1 else None


def _owned(value: fx.Node, writer: fx.Node) -> bool:
    """Return whether only ``value`` and ``writer`` read the memory of ``value``."""
    if any(user is not writer and shares_memory(user) for user in value.users):
        return False
    while shares_memory(value):
        source = input_of(value)
        if not isinstance(source, fx.Node) or source.op != "call_function" or len(source.users) > 1:
            return False
        value = source
    return True
