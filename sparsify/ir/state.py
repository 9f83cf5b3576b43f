"""Parameters, buffers and hooks of a program: a tree of bare modules under the user's own names."""

from __future__ import annotations

import difflib
from typing import Any, cast

from torch import Tensor, nn

from sparsify.ir.nodes import HOOKS

TABLES = ("_parameters", "_buffers", "_modules")


def submodule(root: nn.Module, target: str) -> nn.Module:
    """Look up the submodule called ``target`` as `find` does; an empty name is the root itself.

    Raises:
        AttributeError: If there is none.
    """
    found = find(root, target) if target else root
    if not isinstance(found, nn.Module):
        raise AttributeError(f"{getattr(root, 'name', type(root).__name__)!r} has no submodule {target!r}")
    return found


def find(root: nn.Module, name: str) -> Tensor | nn.Module | None:
    """Look up the parameter, buffer or submodule called ``name``; None if there is none.

    The lookup uses the tables of the modules on the way, because a name may equal any attribute of a module (``graph``, ``train``).
    """
    owner: nn.Module | None = root
    *path, leaf = name.split(".")
    for part in path:
        owner = owner._modules.get(part) if owner is not None else None
    if owner is None:
        return None
    return next((value for table in TABLES if (value := getattr(owner, table).get(leaf)) is not None), None)


def tensor_of(root: nn.Module, name: object) -> Tensor:
    """The parameter or buffer called ``name``.

    Raises:
        AttributeError: If there is none; naming the nearest.
    """
    value = find(root, name) if isinstance(name, str) else None
    if isinstance(value, Tensor):
        return value
    known = [found for table in (root.named_parameters, root.named_buffers) for found, _ in table()]
    near = difflib.get_close_matches(str(name), known, n=3)
    nearest = f" Nearest: {', '.join(near)}." if near else ""
    raise AttributeError(
        f"program {getattr(root, 'name', type(root).__name__)!r} has no parameter or buffer {name!r}.{nearest} "
        f"List them with named_parameters() and named_buffers()."
    )


def skeleton(model: nn.Module) -> nn.Module:
    """Make a tree of bare modules that holds the same parameter and buffer objects as ``model``, under the same names."""
    root = nn.Module()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        place(root, name, parameter)
    for prefix, module in model.named_modules(remove_duplicate=False):
        for leaf, buffer in module._buffers.items():
            if buffer is not None:
                name = f"{prefix}.{leaf}" if prefix else leaf
                place(root, name, buffer, persistent=leaf not in module._non_persistent_buffers_set)
    return root


def place(root: nn.Module, name: str, value: Tensor | nn.Module, *, persistent: bool = True) -> None:
    """Register a parameter, buffer or submodule under a dotted name, making bare modules on the way."""
    owner = root
    *path, leaf = name.split(".")
    for part in path:
        if part not in owner._modules:
            owner._modules[part] = nn.Module()
        owner = cast(nn.Module, owner._modules[part])
    if isinstance(value, nn.Parameter):
        owner._parameters[leaf] = value
    elif isinstance(value, Tensor):
        owner._buffers[leaf] = value
        (owner._non_persistent_buffers_set.discard if persistent else owner._non_persistent_buffers_set.add)(leaf)
    else:
        owner._modules[leaf] = value


def clone_state(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Make a `skeleton` with copies of all tensors and hooks; tied tensors stay tied.

    Args:
        model: the module to copy; it does not change.
        memo: the memo of `copy.deepcopy`: tensors copied before are taken from it, and new copies are added to it.
    """
    memo = {} if memo is None else memo

    def copied(value: Tensor) -> Tensor:
        if id(value) not in memo:
            fresh = value.detach().clone()
            memo[id(value)] = nn.Parameter(fresh, value.requires_grad) if isinstance(value, nn.Parameter) else fresh
        return memo[id(value)]

    source, root = skeleton(model), nn.Module()
    for prefix, module in source.named_modules(remove_duplicate=False):
        for leaf, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None:
                name = f"{prefix}.{leaf}" if prefix else leaf
                place(root, name, copied(value), persistent=leaf not in module._non_persistent_buffers_set)
    for name, module in model.named_modules():
        if isinstance(module, HOOKS):
            place(root, name, memo.setdefault(id(module), type(module)()))
    return root
