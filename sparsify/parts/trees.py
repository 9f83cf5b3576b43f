"""Trees of tensors: a batch that consists of more than one tensor is a tree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Tree = Any
"""A tensor, or a tuple or mapping whose leaves are tensors."""


def mapped(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """Apply ``function`` to each tensor of a tree; returns a tree of the same structure. Other leaves stay unchanged."""
    if isinstance(tree, Tensor):
        return function(tree)
    return pytree.tree_map_only(Tensor, function, tree)


def tensors(tree: Tree) -> list[Tensor]:
    """List the tensors of a tree, in the order of its mappings."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def moved(tree: Tree, device: torch.device) -> Tree:
    """Move the tensors of a tree to ``device``; returns a new tree."""
    return mapped(lambda tensor: tensor.to(device), tree)


def rows_of(tree: Tree) -> int:
    """Return the number of rows of the first tensor of a tree."""
    return len(tree) if isinstance(tree, Tensor) else len(tensors(tree)[0])


def described(tree: Tree) -> str:
    """Describe structure, dtypes and shapes of a tree, with the number of rows, as one text."""
    leaves, spec = pytree.tree_flatten(tree)
    shapes = [(str(leaf.dtype), list(leaf.shape)) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves]
    return f"{spec} {shapes}"


def shapes(tree: Tree) -> str:
    """Show names and shapes of the tensors of a tree in a message: ``[2, 3]``, or ``ids [2, 3], mask [2, 3]``."""
    if isinstance(tree, Tensor):
        return str(list(tree.shape))
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    return ", ".join(f"{name} {shapes(value)}" for name, value in items)
