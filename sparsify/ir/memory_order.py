"""Finds values whose entries may be stored in any order of memory, because no operator that reads them asks for a certain one."""

from __future__ import annotations

import torch
from torch import fx

from sparsify.ir.compact import compact_linear
from sparsify.ir.traits import argument, draws, kind_of
from sparsify.ir.weight_reads import is_tap


def is_free(module: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether a value is read only as the input of linear layers, directly or through operators on each entry.

    An output of the program is not free, because a loop may call ``view`` on it.
    """
    waiting, seen = [node], {node}
    while waiting:
        value = waiting.pop()
        for user in value.users:
            if _is_input(module, user, value):
                continue
            if not (_keeps_order(user) or is_tap(module, user)):
                return False
            if user not in seen:
                seen.add(user)
                waiting.append(user)
    return True


def _keeps_order(node: fx.Node) -> bool:
    """Return whether an operator computes each entry on its own. Dropout and the like draw random numbers in the order of memory."""
    return kind_of(node) in ("elementwise", "combination") and not draws(node)


def _is_input(module: fx.GraphModule, user: fx.Node, value: fx.Node) -> bool:
    """Return whether a linear layer, or the tap of its weight, reads a value as the input of the layer."""
    if user.target in (torch.ops.aten.linear.default, compact_linear):
        return argument(user, "weight") is not value and argument(user, "bias") is not value
    return is_tap(module, user) and user.all_input_nodes[0] is not value
