"""What operators do: one table that all passes and counts use, and access to the arguments of nodes by name.

`TABLE` lists an operator under its name without namespace, overload, and the ``_`` of its in-place form. Pointwise operators, views,
in-place writes and random draws need no entry if torch's schemas and tags describe them, so a new activation is elementwise automatically.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from sparsify.ir.compact import COMPACT_OPERATORS
from sparsify.ir.neurons import NEURON_OPERATORS
from sparsify.ir.nodes import MASK_OPERATORS, apply_random_mask


@dataclass(frozen=True)
class Traits:
    """What is known about an operator.

    Attributes:
        name: without namespace, overload and ``_``.
        kind: a key of `TABLE`; ``elementwise`` of one tensor, ``combination`` of several, position by position; ``view``; ``unknown``.
        value: name of the first argument that is a tensor.
        weights: names of the operands that may be weights, where it is a product.
    """

    name: str
    kind: str
    value: str = ""
    weights: tuple[str, ...] = ()


PRODUCTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "linear": {"linear": ("weight",)},
    "conv": dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution", "_convolution", "_convolution_mode"), ("weight",)),
    "conv-transpose": dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), ("weight",)),
    "matmul": {
        "matmul": ("self", "other"), "mm": ("self", "mat2"), "bmm": ("self", "mat2"), "mv": ("self", "vec"),
        "dot": ("self", "tensor"), "vdot": ("self", "other"), "inner": ("self", "other"), "einsum": ("tensors",),
        "tensordot": ("self", "other"), "addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2"), "addmv": ("mat", "vec"),
        "operator.matmul": ("a", "b"), "grouped_linear": ("weight",),
    },
    "bilinear": {"bilinear": ("weight",)},
    "attention": {"scaled_dot_product_attention": ()},
    "recurrent": {
        **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), ("params",)),
        **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), ("w_ih", "w_hh")),
    },
    "embedding": {"embedding": ("weight",)},
    "embedding-bag": {"embedding_bag": ("weight",)},
}  # fmt: skip
"""Operators that multiply by a weight or look it up, by kind, with the arguments that can be that weight."""
TABLE: Mapping[str, str] = {
    "same": "to _to_copy contiguous alias clone detach lift_fresh_copy",
    "elementwise": "hardswish log_sigmoid gelu mish rsub",
    "dropout": "dropout feature_dropout alpha_dropout feature_alpha_dropout",
    "pool": """
        max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
        reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d upsample_linear1d
        upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d upsample_nearest1d upsample_nearest2d upsample_nearest3d""",
    "pad": "constant_pad_nd pad",
    "reduction": "mean sum prod amax amin",
    "norm": """
        batch_norm layer_norm group_norm instance_norm rms_norm native_batch_norm native_group_norm native_layer_norm
        _native_batch_norm_legit prelu _prelu_kernel""",
    "turn": "t transpose permute numpy_T mT movedim swapaxes swapdims",
    "reshape": "reshape view flatten unflatten squeeze unsqueeze view_as _unsafe_view _reshape_alias",
    "cut": """
        chunk narrow select slice split split_with_sizes tensor_split unbind index_select expand expand_as repeat
        operator.getitem""",
    "join": "cat concat concatenate hstack stack vstack",
    "weight-norm": "_weight_norm _weight_norm_interface",
    "free": """
        _assert_async _assert_scalar _assert_tensor_metadata _local_scalar_dense _log_softmax _softmax _unique2
        adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d affine_grid_generator all aminmax any arange
        argmax argmin argsort bernoulli binary_cross_entropy binary_cross_entropy_with_logits bincount broadcast_tensors
        bucketize channel_shuffle col2im copy cosine_similarity count_nonzero cross_entropy_loss cummax
        cummin cumprod cumsum diag diag_embed diff embedding_renorm empty empty_like empty_permuted empty_strided equal
        eye fill flip fliplr flipud fractional_max_pool2d full full_like gather ger glu huber_loss im2col
        index index_add index_copy index_fill index_put is_floating_point isclose isin item kl_div kron kthvalue l1_loss
        lift lift_fresh linalg_vector_norm linspace log_softmax logcumsumexp logsumexp masked_fill masked_scatter
        masked_select max max_pool2d_with_indices max_unpool2d median meshgrid min mode mse_loss multinomial nan_to_num
        native_dropout nanmean nansum new_empty new_full new_ones new_zeros nll_loss nll_loss_nd nonzero nonzero_numpy norm
        norm_except_dim normal one_hot ones ones_like outer pairwise_distance pixel_shuffle pixel_unshuffle poisson
        rand rand_like randint randint_like randn randn_like randperm renorm repeat_interleave resize roll rot90
        scalar_tensor scatter scatter_add scatter_reduce searchsorted select_scatter slice_scatter smooth_l1_loss
        soft_margin_loss softmax sort std std_mean sym_constrain_range sym_constrain_range_for_size sym_numel sym_size
        sym_storage_offset sym_stride take take_along_dim tile topk trace tril tril_indices triu triu_indices uniform
        unique_consecutive unique_dim var var_mean where zero zeros zeros_like""",
}  # fmt: skip
"""Operators that multiply no matrices, by kind; ``free`` is for operators about which nothing else has to be known."""
ELEMENTWISE = ("same", "elementwise", "dropout")
"""Kinds of operators that compute each output entry from the same entry of one input, with one function for all entries."""
_KINDS = {
    name: kind for kind, names in (*PRODUCTS.items(), *((k, v.split()) for k, v in TABLE.items())) for name in names
}
_WEIGHTS = {name: weights for operators in PRODUCTS.values() for name, weights in operators.items()}
_UNKNOWN = Traits("", "unknown")


def traits(node: fx.Node) -> Traits:
    """Return the traits of a node's operator; masks have kind ``mask``, and nodes that call no operator ``unknown``."""
    return traits_of(node.target) if node.op == "call_function" else _UNKNOWN


@functools.cache
def traits_of(target: Any) -> Traits:
    """Return the traits of an operator."""
    if target in MASK_OPERATORS or target is apply_random_mask:
        return Traits(target.__name__, "mask", "weight")
    if target in COMPACT_OPERATORS:
        return Traits(target.__name__, COMPACT_OPERATORS[target], "input", ("weight",))
    if target in NEURON_OPERATORS:
        return Traits(target.__name__, NEURON_OPERATORS[target], next(iter(_parameters(target))))
    if not isinstance(target, torch._ops.OpOverload):
        name = f"operator.{getattr(target, '__name__', '')}"
        return Traits(name, _KINDS.get(name, "unknown"), weights=_WEIGHTS.get(name, ()))
    name, schema = target._opname.rstrip("_") or target._opname, target._schema
    tensors = [a.name for a in schema.arguments if str(a.type) in ("Tensor", "Optional[Tensor]")]
    known = target.namespace in ("aten", "prims", "sparsify")
    kind = _KINDS.get(name, "unknown") if known else "unknown"
    returned = [value.alias_info for value in schema.returns]
    pointwise = kind == "elementwise" or (kind in ("unknown", "free") and torch.Tag.pointwise in target.tags)
    if pointwise and len(returned) == 1:
        kind = "elementwise" if len(tensors) == 1 else "combination"
    if kind == "unknown" and known and returned and all(a is not None and not a.is_write for a in returned):
        kind = "view"
    return Traits(name, kind, tensors[0] if tensors else "", _WEIGHTS.get(name, ()) if known else ())


def kind_of(node: fx.Node) -> str:
    """Return the kind of a node's operator; a ``convolution`` with ``transposed=True`` is ``conv-transpose``."""
    found = traits(node)
    transposed = found.kind == "conv" and "transposed" in _parameters(node.target) and argument(node, "transposed")
    return "conv-transpose" if transposed else found.kind


def is_elementwise(node: fx.Node) -> bool:
    """Return whether a node computes each entry of its value from the same entry of one input, with one function for all entries."""
    return kind_of(node) in ELEMENTWISE or (kind_of(node) == "combination" and len(node.all_input_nodes) == 1)


# --- arguments


@functools.cache
def _parameters(target: Any) -> dict[str, tuple[int | None, Any]]:
    """Return place (None: keyword only) and default (None: no default) of each argument of an operator, by name."""
    if isinstance(target, torch._ops.OpOverload):
        given = [
            (a.name, a.kwarg_only, a.default_value if a.has_default_value() else None) for a in target._schema.arguments
        ]
    else:
        try:
            parameters = inspect.signature(target).parameters.values()
        except (TypeError, ValueError):  # not a function, or a builtin without a signature
            parameters = ()
        given = [(p.name, p.kind is p.KEYWORD_ONLY, None if p.default is p.empty else p.default) for p in parameters]
    return {name: (None if by_name else place, default) for place, (name, by_name, default) in enumerate(given)}


def has_argument(node: fx.Node, name: str) -> bool:
    """Return whether the operator of a node has an argument called ``name``."""
    return name in _parameters(node.target)


def argument(node: fx.Node, name: str) -> Any:
    """Return an argument of a node by name, whether given by position or by name; its default if it was not given.

    Args:
        node: a node that calls an operator.
        name: name of the argument in the operator's schema.

    Raises:
        KeyError: If the operator has no such argument.
    """
    place, default = _parameters(node.target)[name]
    if place is not None and place < len(node.args):
        return node.args[place]
    return node.kwargs.get(name, default)


def state_name(node: fx.Node, name: str) -> str:
    """Return the name of the parameter or buffer that an argument reads."""
    return str(argument(node, name).target)


def arguments(node: fx.Node) -> dict[str, Any]:
    """Return all arguments of a node by name, with defaults."""
    return {name: argument(node, name) for name in _parameters(node.target)}


def place_of_argument(target: Any, name: str) -> int | None:
    """Return the position of an operator's argument; None if it is keyword only."""
    return _parameters(target)[name][0]


def input_of(node: fx.Node) -> Any:
    """Return the main input of a node: its first argument that is a tensor."""
    name = traits(node).value
    return argument(node, name) if name else next(iter(node.args), None)


def operands(node: fx.Node) -> Iterator[Any]:
    """Yield the arguments that a product may read as its weight, including those inside lists."""
    for name in traits(node).weights:
        value = argument(node, name)
        yield from value if isinstance(value, (list, tuple)) else (value,)


def dimensions(value: Any, rank: int) -> list[int]:
    """Normalise dimensions given as one number, several, or none (all) to a list counted from the front."""
    listed: Sequence[Any] = value if isinstance(value, (list, tuple)) else () if value is None else (value,)
    return [int(d) % rank for d in listed] or list(range(rank))


# --- effects


def draws(node: fx.Node) -> bool:
    """Return whether a node draws random numbers: its switch, if it has one, is on, and its rate, if it has one, is not 0."""
    if node.op != "call_function":
        return False
    names = _parameters(node.target)
    switch = next((name for name in ("train", "training") if name in names), None)
    if switch is not None and argument(node, switch) is False:
        return False
    rates = ("p", "dropout", "dropout_p") if switch is not None else ("dropout_p",)
    rate = next((name for name in rates if name in names), None)
    if rate is not None:
        return bool(argument(node, rate))
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def written(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the arguments that a node changes in place: those marked in its schema, and running statistics in training."""
    schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
    names = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write] if schema is not None else []
    if not names and kind_of(node) == "norm" and has_argument(node, "running_mean"):
        switch = "training" if has_argument(node, "training") else "use_input_stats"
        names = ["running_mean", "running_var"] if argument(node, switch) else []
    for name in names:
        value = argument(node, name)
        yield from (v for v in (value if isinstance(value, (list, tuple)) else (value,)) if isinstance(v, fx.Node))


def shares_memory(node: fx.Node) -> bool:
    """Return whether the result of a node may share memory with its arguments."""
    returned = getattr(getattr(node.target, "_schema", None), "returns", ())
    aliased = any(value.alias_info is not None for value in returned)
    return aliased or kind_of(node) == "dropout" or traits(node).name == "operator.getitem"


def apply(node: fx.Node, given: Callable[[fx.Node], Any]) -> Any:
    """Run the operator of a node on values; ``given`` returns the value to use for an argument node."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), given)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def keeps_zero(node: fx.Node) -> bool:
    """Return whether a node is elementwise and maps 0 to 0; found by running the operator with the node's own arguments."""
    if not is_elementwise(node) or len(node.all_input_nodes) != 1 or any(written(node)):
        return False
    return kind_of(node) in ("same", "dropout") or bool(apply(node, lambda _: torch.zeros(())) == 0)


def outputs_of(output: fx.Node) -> tuple[Any, ...]:
    """Return the values that the output node of a phase returns."""
    return tuple(output.args[0])  # type: ignore[arg-type]


def named_outputs(output: fx.Node) -> dict[str, Any]:
    """Return the values that the output node of a phase returns, by name."""
    return dict(zip(output.meta["names"], outputs_of(output), strict=True))
