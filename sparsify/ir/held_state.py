"""State that a model holds between calls outside of what a trace can see: attributes, and buffers that it replaces by others."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsify.errors import TraceError

_SHOWN = 4
_OWN = frozenset(vars(nn.Module()))
"""What torch keeps in every module."""


def refuse_state(model: nn.Module, call: Callable[[], Any]) -> None:
    """Call a model; where that changed tensors in attributes, or the shape of a buffer, call it again.

    Args:
        model: the model; its buffers, its attributes and the RNG change.
        call: calls it, and returns its output.

    Raises:
        TraceError: If the second call, with the same inputs and random numbers, gives other outputs: a trace would start each call from
            the same state.
    """
    before = _held(model)
    torch.manual_seed(0)
    first = call()
    changed = [name for name, value in _held(model).items() if value != before.get(name)]
    if not changed:
        return
    torch.manual_seed(0)
    if not _same(first, call()):
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise TraceError(
            f"{type(model).__name__} keeps a state between calls, in {', '.join(map(repr, changed[:_SHOWN]))}{more}: a second call with "
            f"the same inputs gives other outputs, and a trace would start each call anew. Start forward with a fresh state "
            f"(torch.zeros_like(x)), or take the state as an argument and return it; in snntorch that is init_hidden=False."
        )


@contextmanager
def attributes_kept(model: nn.Module) -> Generator[None]:
    """Put attributes back to which tensors were assigned in the block; torch.export leaves tensors without values in them."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, values in before:
            now = vars(module)
            for name in [n for n, x in now.items() if n not in _OWN and x is not values.get(n) and _tensors(x)]:
                del now[name]
                now.update({name: values[name]} if name in values else {})


def _held(model: nn.Module) -> dict[str, Any]:
    """Return, by name, which tensors each attribute holds, and the shape of each buffer."""
    found: dict[str, Any] = {}
    for prefix, module in model.named_modules():
        start = f"{prefix}." if prefix else ""
        values = {name: _tensors(value) for name, value in vars(module).items() if name not in _OWN}
        found |= {start + name: [id(x) for x in tensors] for name, tensors in values.items() if tensors}
        found |= {start + name: tuple(x.shape) for name, x in module._buffers.items() if x is not None}
    return found


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors of an attribute, also in a list or mapping."""
    if not isinstance(value, Tensor | list | tuple | dict):
        return []
    return [x for x in pytree.tree_leaves(value) if isinstance(x, Tensor)]


def _same(first: Any, second: Any) -> bool:
    a, b = ([x for x in pytree.tree_leaves(value) if isinstance(x, Tensor)] for value in (first, second))
    return len(a) == len(b) and all(x.shape == y.shape and _close(x, y) for x, y in zip(a, b, strict=True))


def _close(x: Tensor, y: Tensor) -> bool:
    return torch.allclose(x, y, rtol=1e-4, atol=1e-6, equal_nan=True) if x.is_floating_point() else torch.equal(x, y)
