"""How far rounding moves the outputs of a program: it is run with the values of every operator that rounds off by a few roundings.

An exported file computes sums in another order and functions by other approximations, so its outputs are never those of the program to the
bit. How much that may move an output is a property of the program and of the sample: a difference of two large numbers loses digits, a
threshold turns a rounding into a jump. A run with disturbed values measures it, for each output of each sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from sparsify.ir.state import find

ROUNDINGS = 16.0
"""By how many roundings of its type (units in the last place) a value is moved at most."""
HALF_ROUNDINGS = 2.0
"""The same for float16 and bfloat16, whose sums are kept in float32."""
APPROXIMATION = 4 * torch.finfo(torch.float32).eps
"""By how much the value of an approximated function moves besides: runtimes compute these to a few roundings of 1, not of the value."""
_LARGE = 1e37
_EXACT = """
    add sub rsub mul div neg abs relu relu6 hardtanh clamp clamp_min clamp_max maximum minimum where masked_fill floor ceil round trunc
    frac sign eq ne lt le gt ge logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not isnan isinf isfinite
    floor_divide remainder fmod leaky_relu prelu _prelu_kernel threshold sqrt reciprocal square dropout feature_dropout alpha_dropout
    to _to_copy type_as clone contiguous detach alias lift_fresh_copy copy view reshape _unsafe_view view_as expand expand_as flatten
    unflatten squeeze unsqueeze transpose permute t numpy_T movedim swapaxes narrow slice select split split_with_sizes chunk unbind
    cat stack hstack vstack concat repeat repeat_interleave tile flip roll pad constant_pad_nd reflection_pad1d reflection_pad2d
    replication_pad1d replication_pad2d pixel_shuffle pixel_unshuffle channel_shuffle unfold index index_select index_put gather
    scatter take embedding one_hot max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d max min amax amin argmax
    argmin topk sort argsort any all nonzero tril triu diagonal diag zeros ones full empty zeros_like ones_like full_like empty_like
    arange eye new_zeros new_ones new_full new_empty scalar_tensor sym_size sym_numel item fill zero masked_select meshgrid
"""
"""Operators that move values, or whose one rounding IEEE 754 fixes: every runtime gives the same bits for the same values."""
_APPROXIMATED = """
    sigmoid tanh erf gelu silu mish softplus elu selu celu log_sigmoid sin cos atan hardswish hardsigmoid lstm gru rnn_tanh rnn_relu
"""
_EXACT_NAMES, _APPROXIMATED_NAMES = frozenset(_EXACT.split()), frozenset(_APPROXIMATED.split())


def disturbed(phase: fx.GraphModule, inputs: Sequence[Tensor], seed: int) -> list[Any]:
    """The flat outputs of a phase, computed with values that are off by up to `ROUNDINGS` roundings.

    Args:
        phase: of a program on the CPU. Its buffers are the caller's to put back if the graph writes them.
        inputs: flat, as the phase takes them.
        seed: of the disturbance; the global random state is not touched.
    """
    with torch.no_grad():
        return list(_Disturbed(phase, seed).run(*inputs))


class _Disturbed(fx.Interpreter):
    def __init__(self, phase: fx.GraphModule, seed: int) -> None:
        super().__init__(phase)
        self._generator = torch.Generator().manual_seed(seed)

    def fetch_attr(self, target: str) -> Any:
        return find(self.module, target)  # by tables: state may be called like an attribute of the phase

    def run_node(self, n: fx.Node) -> Any:
        name, in_place = _name(n)
        if n.op != "call_function" or name in _EXACT_NAMES or not name:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        moved, named = pytree.tree_map_only(Tensor, self._moved, (args, kwargs))
        result = pytree.tree_map_only(Tensor, self._moved, n.target(*moved, **named))  # type: ignore[operator]
        if name in _APPROXIMATED_NAMES:
            result = pytree.tree_map_only(Tensor, self._shifted, result)
        return args[0].copy_(result) if in_place else result

    def _moved(self, value: Tensor) -> Tensor:
        if not value.is_floating_point() or not value.numel():
            return value
        precise = value.dtype in (torch.float32, torch.float64)
        share = (ROUNDINGS if precise else HALF_ROUNDINGS) * torch.finfo(value.dtype).eps
        moved = value + value * self._noise(value) * share
        return moved if float(value.abs().max()) < _LARGE else torch.where(value.abs() < _LARGE, moved, value)

    def _shifted(self, value: Tensor) -> Tensor:
        return value + self._noise(value) * APPROXIMATION if value.is_floating_point() else value

    def _noise(self, value: Tensor) -> Tensor:
        return torch.empty(value.shape, dtype=value.dtype).uniform_(-1.0, 1.0, generator=self._generator)


def _name(node: fx.Node) -> tuple[str, bool]:
    """The name of an ATen operator without the underscore of its in-place form, and whether it is that; "" for one that does not round."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return "", False
    name = node.target._schema.name.rpartition("::")[2]
    return name.removesuffix("_"), name.endswith("_") and not name.endswith("__")
