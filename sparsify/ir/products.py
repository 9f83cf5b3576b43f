"""Which operators multiply matrices, and how many multiply-accumulates each takes per example."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from sparsify.ir.dimensions import BATCH, value_of
from sparsify.ir.grouped_linear import GROUPED_LINEAR
from sparsify.ir.nodes import MASK_OPERATORS, TensorSpec, apply_random_mask

if TYPE_CHECKING:
    from sparsify.ir.program import Program

aten = torch.ops.aten

_CONV = (
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.convolution.default,
    aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
)  # fmt: skip
_TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
_MATMUL = {
    aten.matmul.default: 0, aten.mm.default: 0, aten.bmm.default: 0, aten.mv.default: 0, aten.dot.default: 0,
    aten.vdot.default: 0, aten.inner.default: 0, aten.einsum.default: 0, aten.tensordot.default: 0,
    aten.addmm.default: 1, aten.baddbmm.default: 1, aten.addmv.default: 1, operator.matmul: 0, GROUPED_LINEAR: 1,
}  # fmt: skip
"""Products of two operands, with the position of the first."""
_EMBEDDING = (aten.embedding.default,)
_BAGS = (aten.embedding_bag.default, aten.embedding_bag.padding_idx)
_RECURRENT = {
    getattr(getattr(aten, name), overload): position
    for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")
    for overload, position in (("input", 2), ("data", 3))
}
"""Recurrent layers, with the position of their list of weights."""
_CELLS = (aten.lstm_cell.default, aten.gru_cell.default, aten.rnn_tanh_cell.default, aten.rnn_relu_cell.default)
_FREE_NAMES = """
    _assert_async _assert_scalar _assert_tensor_metadata _local_scalar_dense _log_softmax _native_batch_norm_legit
    _softmax _to_copy _unique2 _weight_norm _weight_norm_interface adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d affine_grid_generator all alpha_dropout
    amax amin aminmax any arange argmax argmin argsort avg_pool1d avg_pool2d avg_pool3d batch_norm bernoulli
    binary_cross_entropy binary_cross_entropy_with_logits bincount broadcast_tensors bucketize cat channel_shuffle clone
    col2im concat concatenate constant_pad_nd contiguous copy cosine_similarity count_nonzero cross_entropy_loss cummax
    cummin cumprod cumsum detach diag diag_embed diff dropout embedding embedding_bag embedding_renorm empty empty_like
    empty_permuted empty_strided equal eye feature_alpha_dropout feature_dropout fill flatten flip fliplr flipud
    fractional_max_pool2d full full_like gather ger glu group_norm gumbel_softmax hstack huber_loss im2col index index_add
    index_copy index_fill index_put index_select instance_norm is_floating_point isclose isin item kl_div kron kthvalue
    l1_loss layer_norm lift lift_fresh lift_fresh_copy linalg_vector_norm linspace log_softmax logcumsumexp logsumexp
    masked_fill masked_scatter masked_select max max_pool1d max_pool2d max_pool2d_with_indices max_pool3d max_unpool2d
    mean median meshgrid min mode mse_loss multinomial nan_to_num nanmean nansum native_batch_norm native_dropout
    native_group_norm native_layer_norm new_empty new_full new_ones new_zeros nll_loss nll_loss_nd nonzero
    nonzero_numpy norm norm_except_dim normal numpy_T one_hot ones ones_like outer pad pairwise_distance pixel_shuffle
    pixel_unshuffle poisson prod rand rand_like randint randint_like randn randn_like randperm reflection_pad1d
    reflection_pad2d reflection_pad3d renorm repeat repeat_interleave replication_pad1d replication_pad2d
    replication_pad3d reshape resize rms_norm roll rot90 scalar_tensor scatter scatter_add scatter_reduce searchsorted
    select_scatter slice_scatter smooth_l1_loss soft_margin_loss softmax sort stack std std_mean sum sym_constrain_range
    sym_constrain_range_for_size sym_numel sym_size sym_storage_offset sym_stride take take_along_dim tile to topk
    trace tril tril_indices triu triu_indices uniform unique_consecutive unique_dim upsample_bicubic2d upsample_bilinear2d
    upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d var var_mean vstack
    where zero zeros zeros_like
"""
_FREE = frozenset(_FREE_NAMES.split())
"""ATen operators that multiply no matrices, beside the pointwise ones and the views."""


def product_kind(user: fx.Node, value: fx.Node) -> str | None:
    """The kind of product in which a node reads a value as its weight, or None where it does not."""
    target: Any = user.target
    position = next((i for i, argument in enumerate(user.args) if argument is value), None)
    if target is aten.linear.default and position == 1:
        return "linear"
    if position == 1 and _is_transposed(user):
        return "conv-transpose"
    if target in _CONV and position == 1:
        return "conv"
    if target in _MATMUL:
        return "matmul"
    if target is aten.bilinear.default and position == 2:
        return "bilinear"
    if target in _EMBEDDING and position == 0:
        return "embedding"
    if target in _BAGS and position == 0:
        return "embedding-bag"
    if target in _RECURRENT and any(value is weight for weight in _recurrent_weights(user)):
        return "recurrent"
    if target in _CELLS and any(value is weight for weight in _recurrent_weights(user)):
        return "recurrent"
    return None


def _is_transposed(node: fx.Node) -> bool:
    return node.target in _TRANSPOSED or (node.target is aten.convolution.default and bool(node.args[6]))


def is_product(node: fx.Node) -> bool:
    """Whether a node multiplies matrices, and `Macs` knows how to count it."""
    target: Any = node.target
    return (
        target in (aten.linear.default, aten.bilinear.default, aten.scaled_dot_product_attention.default)
        or target in (*_TRANSPOSED, *_CONV, *_CELLS)
        or target in _MATMUL
        or target in _RECURRENT
    )


def is_free(node: fx.Node) -> bool:
    """Whether a node is known to multiply no matrices: pointwise, a view, a reduction, a lookup, or one of our own operators."""
    target: Any = node.target
    if node.op != "call_function":
        return node.op != "call_method"
    if target in MASK_OPERATORS or target is apply_random_mask:
        return True
    if not isinstance(target, torch._ops.OpOverload):
        return getattr(target, "__module__", "") in ("_operator", "math", "builtins", "torch")
    if is_product(node):
        return False
    if torch.Tag.pointwise in target.tags:
        return True
    name = target._schema.name.removeprefix("aten::").removeprefix("prims::").rstrip("_")
    views = [returned.alias_info for returned in target._schema.returns]
    is_view = bool(views) and all(alias is not None and not alias.is_write for alias in views)
    return target.namespace in ("aten", "prims") and (is_view or name in _FREE)


_UNNAMED = re.compile(r"N\d*")
"""A size that only a run tells."""


class Macs:
    """Multiply-accumulates per example of the nodes of a program, from the shapes the trace recorded.

    Dimensions that vary beside the batch have the size of the example.
    """

    def __init__(self, program: Program) -> None:
        sizes = (first.shape[0] for first in program.input_specs if first.shape)
        batch = next((size for size in sizes if isinstance(size, int)), 1)
        self._batch = 1 if program.dynamic_batch else batch
        self._sizes = {**program.sizes, BATCH: 1}

    def of(self, node: fx.Node) -> int | None:
        """What a product costs, or None where a shape is not known."""
        try:
            return self._of(node)
        except _UnknownShape:
            return None

    def of_weight(self, node: fx.Node, value: fx.Node) -> int:
        """What a product costs on account of one of its weights; 0 where a shape is not known."""
        try:
            if node.target in _RECURRENT or node.target in _CELLS:
                return self._steps(node) * math.prod(map(self._size, _shape(value)))
        except _UnknownShape:
            return 0
        return (self.of(node) or 0) if is_product(node) else 0

    def _of(self, node: fx.Node) -> int:
        target: Any = node.target
        if target in _RECURRENT or target in _CELLS:
            weights = [math.prod(map(self._size, _shape(w))) for w in _recurrent_weights(node) if len(_shape(w)) > 1]
            return self._steps(node) * sum(weights)
        if _is_transposed(node):
            # each input value is multiplied by the kernels of all outputs of its group
            return self._values(node.args[0]) * math.prod(map(self._size, _shape(node.args[1])[1:]))
        if target in _CONV:
            return self._values(node) * math.prod(map(self._size, _shape(node.args[1])[1:]))
        if target is aten.linear.default:
            return self._values(node) * self._size(_shape(node.args[1])[-1])
        if target is aten.bilinear.default:
            return self._values(node) * math.prod(map(self._size, _shape(node.args[2])[1:]))
        if target is aten.scaled_dot_product_attention.default:
            query, key, value = (_shape(argument) for argument in node.args[:3])
            queries = self._values(node.args[0])
            return queries * self._size(key[-2]) + queries // self._size(query[-1]) * self._size(key[-2]) * self._size(
                value[-1]
            )
        if target is aten.einsum.default:
            return self._einsum(node)
        first = _shape(node.args[_MATMUL[target]])
        if target is aten.tensordot.default:
            return self._values(node) * math.prod(self._size(first[dim]) for dim in node.args[2])  # type: ignore[union-attr, index, arg-type]
        return self._values(node) * self._size(first[-1])

    def _einsum(self, node: fx.Node) -> int:
        """All indices of the equation, for every operand after the first: the most that any order of products takes."""
        equation, operands = node.args[:2]
        assert isinstance(equation, str)
        assert isinstance(operands, (list, tuple))
        sizes: dict[str, int | str] = {}
        for labels, operand in zip(equation.partition("->")[0].replace(" ", "").split(","), operands, strict=True):
            shape, extra = _shape(operand), len(_shape(operand)) - len(labels.replace("...", ""))
            spelt = labels.replace("...", "".join(chr(0x2460 + i) for i in range(extra))) if "..." in labels else labels
            sizes |= {label: size for label, size in zip(spelt, shape, strict=True) if sizes.get(label, 1) == 1}
        return self._shared(math.prod(map(self._size, sizes.values()))) * max(len(operands) - 1, 1)

    def _steps(self, node: fx.Node) -> int:
        """Time steps per example, directions apart: every weight is used once in each."""
        return self._values(node.args[0]) // max(self._size(_shape(node.args[0])[-1]), 1)

    def _values(self, node: Any) -> int:
        """Values per example, wherever the batch stands: the second of ``f32[8, 2*N, 16]`` counts 2."""
        return self._shared(math.prod(map(self._size, _shape(node))))

    def _shared(self, total: int) -> int:
        return max(total // self._batch, 1)

    def _size(self, size: int | str) -> int:
        """A size per example: the factor of the batch in ``"2*N"`` or ``"N"``."""
        value = value_of(size, self._sizes | ({size: 1} if isinstance(size, str) and _UNNAMED.fullmatch(size) else {}))
        if value is None:
            raise _UnknownShape
        return value


class _UnknownShape(Exception):
    """A shape was not recorded, or has a size that cannot be read."""


def _shape(node: Any) -> tuple[int | str, ...]:
    if isinstance(node, fx.Node):
        spec = node.meta.get("spec")
        if isinstance(spec, TensorSpec):
            return spec.shape
    raise _UnknownShape


def _recurrent_weights(node: fx.Node) -> Iterator[fx.Node]:
    """The matrices and biases of a recurrent layer or cell."""
    target: Any = node.target
    given = node.args[_RECURRENT[target]] if target in _RECURRENT else node.args[2:4]
    assert isinstance(given, (list, tuple))
    yield from (weight for weight in given if isinstance(weight, fx.Node))
