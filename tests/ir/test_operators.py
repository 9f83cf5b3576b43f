"""The allow list: what computes on tensors may be called, whatever its name; what touches files or memory may not."""

from __future__ import annotations

import pytest
import torch

from sparsify.errors import LoadError
from sparsify.ir.operators import aten_operator, is_allowed


def overloads():
    for schema in torch._C._jit_get_all_schemas():
        namespace, _, name = schema.name.partition("::")
        packet = (
            getattr(getattr(torch.ops, namespace), name, None)
            if namespace in ("aten", "prims", "quantized", "c10d")
            else None
        )
        found = getattr(packet, schema.overload_name or "default", None)
        if isinstance(found, torch._ops.OpOverload):
            yield found


def test_every_core_operator_of_a_forward_pass_is_allowed():
    core = [target for target in overloads() if torch.Tag.core in target.tags and target.namespace == "aten"]
    left = {str(target) for target in core if not is_allowed(target) and "backward" not in str(target)}
    assert len(core) > 150 and left == {"aten.resize_.default", "aten.atan2.out"}


@pytest.mark.parametrize("name", [
    "dropout.default", "batch_norm.default", "scaled_dot_product_attention.default", "sym_size.int", "bernoulli_.float", "lstm.input",
    "relu_.default", "add_.Tensor", "index_put_.default", "_assert_tensor_metadata.default", "rrelu_with_noise.default", "einsum.default",
    "_native_batch_norm_legit.default", "embedding_bag.padding_idx", "to.dtype_layout", "stft.center", "_weight_norm_interface.default",
])  # fmt: skip
def test_operators_of_real_traces_are_allowed(name):
    packet, overload = name.split(".")
    assert aten_operator(f"aten.{name}") is getattr(getattr(torch.ops.aten, packet), overload)


def test_nothing_that_touches_files_memory_or_objects_is_allowed():
    words = ("file", "set_.", "resize", "record_stream", "storage", "print", "unsafe_index", "sparse", "mkldnn", "quantize", "pin_memory",
             "unsafe_masked", "coo_tensor", "requires_grad_", "nested", "lu_solve", "save", "load", "warn", "aten.format")  # fmt: skip
    fine = {
        "aten.storage_offset.default",
        "aten.sym_storage_offset.default",
        "aten.fake_quantize_per_tensor_affine.default",
    }
    allowed = {str(target) for target in overloads() if is_allowed(target)}
    suspicious = {name for name in allowed if any(word in name for word in words)}
    assert {name for name in suspicious - fine if not name.startswith("aten.fake_quantize_per")} == set()
    written = [
        argument.name
        for target in overloads()
        if str(target) in allowed
        for argument in target._schema.arguments
        if argument.is_out
    ]
    assert not written and all(name.startswith("aten.") for name in allowed)


@pytest.mark.parametrize("text", [
    "aten.from_file.default", "prims.add.default", "aten.relu", "aten.relu.default.x", "aten.relu.__class__", "aten.__class__.default",
    "aten.relu.default\n", "", "aten..default", "onnx.relu.default", "aten._nonsense.default", "aten.no_such_thing.default",
])  # fmt: skip
def test_other_texts_are_refused(text):
    with pytest.raises(LoadError):
        aten_operator(text)
