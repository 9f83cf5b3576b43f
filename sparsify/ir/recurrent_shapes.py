"""Lets torch.export handle recurrent layers of any length; it normally computes their shapes step by step, which fixes the length."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
_KEYS = (torch._C.DispatchKey.CompositeImplicitAutograd, torch._C.DispatchKey.Autograd)


def _outputs(values: Tensor, states: Sequence[Tensor], bidirectional: bool) -> tuple[Tensor, ...]:
    width = states[0].shape[-1] * (2 if bidirectional else 1)
    return values.new_empty((*values.shape[:-1], width)), *(state.new_empty(state.shape) for state in states)


def _one_state(input: Tensor, hx: Tensor, params: Any, has_biases: bool, *options: Any) -> tuple[Tensor, ...]:
    return _outputs(input, (hx,), options[3])


def _lstm(input: Tensor, hx: Sequence[Tensor], params: Any, has_biases: bool, *options: Any) -> tuple[Tensor, ...]:
    return _outputs(input, hx, options[3])


_SHAPES: dict[Any, Callable[..., tuple[Tensor, ...]]] = {
    aten.gru.input: _one_state, aten.rnn_tanh.input: _one_state, aten.rnn_relu.input: _one_state, aten.lstm.input: _lstm,
}  # fmt: skip
"""The recurrent layers that a file holds as one operator."""


@contextlib.contextmanager
def of_any_length() -> Generator[None]:
    """Within the block, give torch.export formulas for the shapes of recurrent layers.

    torch.export looks shapes up in tables of Python kernels. The block replaces entries of these tables and restores them.
    """
    saved = {operator: dict(operator.py_kernels) for operator in _SHAPES}
    try:
        for operator, shapes in _SHAPES.items():
            operator.py_kernels.update(dict.fromkeys(_KEYS, shapes))
            operator._dispatch_cache.clear()
        yield
    finally:
        for operator, kernels in saved.items():
            operator.py_kernels.clear()
            operator.py_kernels.update(kernels)
            operator._dispatch_cache.clear()
