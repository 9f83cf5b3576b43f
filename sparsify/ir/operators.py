"""The operators that a graph from a file may call: one allow list for every reader, of ``.sparsify`` and of ``.pt2``.

A file names its operators by text, and text can name anything that is registered in the process: operators that open files
(``aten.from_file``), that change where a tensor's memory lies (``aten.set_``), that trust indices without a check
(``aten._unsafe_index``), or another package's. A list of the operators that were seen in traces would refuse the next architecture, so a
public ATen operator is allowed by what its schema says:

- it is implemented by the dispatcher (the operators of TorchScript, which print and read files, are not);
- it takes and returns tensors, numbers, flags, dtypes, devices and text; no storage, stream, dictionary or object;
- it writes to nothing, or to its first argument as the operators that end in ``_`` do, or is one of `WRITING`;
- its name is not one of `DENIED`: files, memory, and kernels of other layouts and devices that check less than the ordinary ones.

A name that begins with an underscore is internal to torch and has to stand in `INTERNAL`, which holds those that traces have.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

import torch

from sparsify.errors import LoadError
from sparsify.ir.grouped_linear import GROUPED_LINEAR
from sparsify.ir.neurons import NEURON_OPERATORS
from sparsify.ir.nodes import apply_mask, apply_random_mask, masked_view

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sparsify.apply_mask": apply_mask,
    "sparsify.masked_view": masked_view,
    "sparsify.apply_random_mask": apply_random_mask,
    "sparsify.grouped_linear": GROUPED_LINEAR,
    **{f"sparsify.{function.__name__}": function for function in NEURON_OPERATORS},
    **{f"operator.{f.__name__}": f for f in (
        operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod, operator.neg,
        operator.pow, operator.getitem, operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge,
        operator.matmul, operator.and_, operator.or_,
    )},
    "torch.sym_max": torch.sym_max, "torch.sym_min": torch.sym_min, "torch.sym_not": torch.sym_not,
    "torch.sym_float": torch.sym_float, "torch.sym_int": torch.sym_int,
}  # fmt: skip
"""Functions of Python and of this package that a graph may call: masks, packed layers, and arithmetic of sizes."""

DENIED = re.compile(
    r"from_file|set_?|data|resize\w*|requires_grad_|retains_grad|output_nr|pin_memory|is_(pinned|vulkan_available|set_to|distributed)"
    r"|device_put|hash_tensor|empty_quantized|quantize\w*|dequantize|segment_reduce|ctc_loss|lu_solve|linalg_(lu|ldl)_solve"
    r"|\w*(sparse|mkldnn|nested|padded_tensor|_backward|overrideable)\w*|(cudnn|miopen|mps|fbgemm|quantized|cufft|q)_\w*"
    r"|(crow|ccol|row|col)_indices\w*|(hs|s|ss)p?(add)?mm"
)
"""Public operators that no trace needs: files, memory, other layouts and devices, gradients, and what takes indices without a check."""
WRITING = frozenset({"_native_batch_norm_legit", "rrelu_with_noise"})
"""Operators that write to an argument that is not the first: running statistics, and noise."""
INTERNAL = frozenset({
    "__and__", "__or__", "__xor__", "__lshift__", "__rshift__", "__iand__", "__ior__", "__ixor__",
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_assert_async", "_assert_scalar", "_assert_tensor_metadata", "_cdist_forward",
    "_conj", "_convolution", "_convolution_mode", "_euclidean_dist", "_fft_c2c", "_fft_c2r", "_fft_r2c", "_fused_rms_norm",
    "_functional_assert_async", "_functional_assert_scalar", "_functional_sym_constrain_range", "_functional_sym_constrain_range_for_size",
    "_is_all_true", "_is_any_true", "_linalg_det", "_linalg_eigh", "_linalg_slogdet", "_linalg_solve_ex", "_linalg_svd",
    "_local_scalar_dense", "_log_softmax", "_logcumsumexp", "_masked_softmax", "_native_batch_norm_legit",
    "_native_batch_norm_legit_functional", "_native_batch_norm_legit_no_training", "_native_multi_head_attention", "_neg_view",
    "_pad_circular", "_pad_enum", "_pdist_forward", "_prelu_kernel", "_reshape_alias", "_safe_softmax", "_sample_dirichlet",
    "_scaled_dot_product_attention_math", "_scaled_dot_product_flash_attention_for_cpu", "_shape_as_tensor", "_softmax", "_stack",
    "_standard_gamma", "_to_copy", "_transformer_encoder_layer_fwd", "_trilinear", "_unsafe_view", "_upsample_bicubic2d_aa",
    "_upsample_bilinear2d_aa", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "_weight_norm",
    "_weight_norm_interface", "_embedding_bag", "_unique2",
})  # fmt: skip
"""Operators whose names begin with an underscore that traces may hold."""
PLAIN_TYPES = frozenset({"Tensor", "int", "bool", "number", "float", "complex", "str", "Device", "Generator"})
"""Types of arguments, inside lists or optional; a generator can only be None in a file, which has no form for one."""
_NAME = re.compile(r"(\w+)\.(\w+)\.(\w+)", re.ASCII)


def aten_operator(text: str) -> torch._ops.OpOverload:
    """Return the operator called ``aten.<name>.<overload>``.

    Raises:
        LoadError: If there is none, or a graph from a file may not call it.
    """
    parts = _NAME.fullmatch(text)
    if parts is None or parts[1] != "aten" or (parts[2].startswith("_") and parts[2] not in INTERNAL):
        raise LoadError(_refusal(text))
    try:
        found = getattr(getattr(torch.ops.aten, parts[2]), parts[3])
    except AttributeError as error:
        raise LoadError(f"this torch ({torch.__version__}) has no operator {text[:100]!r}.") from error
    if not isinstance(found, torch._ops.OpOverload) or not is_allowed(found):
        raise LoadError(_refusal(text))
    return found


def is_allowed(target: torch._ops.OpOverload) -> bool:
    """Return whether a graph from a file may call an operator."""
    schema = target._schema
    namespace, _, name = schema.name.partition("::")
    if namespace != "aten" or DENIED.fullmatch(name) or (name.startswith("_") and name not in INTERNAL):
        return False
    values = (*schema.arguments, *schema.returns)
    written = [argument.name for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write]
    in_place = (written == ["self"] and (name.endswith("_") or name.startswith("__i"))) or name in WRITING
    qualified = f"{schema.name}.{schema.overload_name}" if schema.overload_name else schema.name
    return (
        (not written or (in_place and not any(name == "out" for name in written)))
        and torch._C._dispatch_has_kernel(qualified)
        and all(_element(str(value.type)) in PLAIN_TYPES for value in values)
    )


def _element(kind: str) -> str:
    """Return the type inside any number of ``List[...]`` and ``Optional[...]``."""
    while (inner := re.fullmatch(r"(?:List|Optional)\[(.*)\]", kind)) is not None:
        kind = inner[1]
    return kind


def _refusal(text: str) -> str:
    return (
        f"a graph from a file may not call {text[:100]!r}: only ATen operators that compute on tensors are allowed. Give the model as "
        f"file.py:factory."
    )
