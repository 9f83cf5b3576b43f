"""Trees of tensors: what a batch is made of, where it is more than one tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Tree = Any
"""A tensor, or a tuple or mapping whose leaves are tensors."""


def mapped(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """A tree of the same structure with ``function`` applied to each tensor; other leaves stay."""
    if isinstance(tree, Tensor):
        return function(tree)
    return pytree.tree_map_only(Tensor, function, tree)


def tensors(tree: Tree) -> list[Tensor]:
    """The tensors of a tree, in the order of its mappings."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def moved(tree: Tree, device: torch.device) -> Tree:
    """A tree with its tensors on ``device``."""
    return mapped(lambda tensor: tensor.to(device), tree)


def rows_of(tree: Tree) -> int:
    """Rows of the first tensor of a tree."""
    return len(tree) if isinstance(tree, Tensor) else len(tensors(tree)[0])


def described(tree: Tree) -> str:
    """Structure, types and shapes of a tree, rows included, as one text."""
    leaves, spec = pytree.tree_flatten(tree)
    shapes = [(str(leaf.dtype), list(leaf.shape)) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves]
    return f"{spec} {shapes}"


def shapes(tree: Tree) -> str:
    """Names and shapes of the tensors of a tree, for messages: ``[2, 3]``, or ``ids [2, 3], mask [2, 3]``."""
    if isinstance(tree, Tensor):
        return str(list(tree.shape))
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    return ", ".join(f"{name} {shapes(value)}" for name, value in items)
