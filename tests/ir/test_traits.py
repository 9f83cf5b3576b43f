"""Operators by what torch's schemas and tags say of them, and arguments by name however they are given."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import fx

from sparsify.ir.nodes import apply_mask
from sparsify.ir.traits import (
    argument,
    arguments,
    dimensions,
    draws,
    input_of,
    is_elementwise,
    keeps_zero,
    kind_of,
    operands,
    traits_of,
    written,
)

aten = torch.ops.aten


def call(target, *args, **kwargs):
    """A node; the text ``x`` is a value, and so is every other text of one letter."""
    graph = fx.Graph()
    values = {name: graph.placeholder(name) for name in "xywbmv"}
    given = fx.map_arg((args, kwargs), lambda node: node)
    args, kwargs = torch.utils._pytree.tree_map(lambda a: values.get(a, a) if isinstance(a, str) else a, given)
    return graph.call_function(target, args, kwargs)


ACTIVATIONS = "relu selu mish hardswish elu celu softplus hardsigmoid log_sigmoid gelu silu leaky_relu abs erf"


@pytest.mark.parametrize("name", ACTIVATIONS.split())
def test_an_activation_needs_no_line(name):
    node = call(getattr(aten, name).default, "x")
    assert is_elementwise(node) and str(input_of(node)) == "x" and not draws(node)


def test_kinds_of_operators():
    expected = {
        aten.add.Tensor: "combination", aten.add.Scalar: "elementwise", aten.pow.Scalar: "elementwise", aten.relu_.default: "elementwise",
        aten.conv2d.padding: "conv", aten.conv_transpose2d.input: "conv-transpose", aten.diagonal.default: "view",
        aten.cdist.default: "unknown", operator.matmul: "matmul", operator.getitem: "cut", operator.add: "unknown", apply_mask: "mask",
        aten.softmax.int: "free", aten.embedding_bag.padding_idx: "embedding-bag", aten.mean.dim: "reduction", len: "unknown",
    }  # fmt: skip
    assert {target: traits_of(target).kind for target in expected} == expected


def test_a_convolution_may_say_that_it_is_transposed():
    def made(transposed):
        return call(aten.convolution.default, "x", "w", None, [1], [0], [1], transposed, [0], 1)

    assert (kind_of(made(True)), kind_of(made(False))) == ("conv-transpose", "conv")


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("x", "w", "b", [2, 2]), {}),
        (("x",), {"weight": "w", "bias": "b", "stride": [2, 2]}),
        (("x", "w"), {"stride": [2, 2], "bias": "b"}),
    ],
)
def test_arguments_by_name(args, kwargs):
    node = call(aten.conv2d.default, *args, **kwargs)
    found = {name: str(value) if isinstance(value, fx.Node) else value for name, value in arguments(node).items()}
    assert found == {
        "input": "x", "weight": "w", "bias": "b", "stride": [2, 2], "padding": [0, 0], "dilation": [1, 1], "groups": 1,
    }  # fmt: skip
    assert [str(value) for value in operands(node)] == ["w"]
    with pytest.raises(KeyError):
        argument(node, "kernel")


def test_arguments_of_python_functions_and_those_by_name_only():
    masked = call(apply_mask, "w", "m", pattern="unstructured")
    assert (str(argument(masked, "mask")), argument(masked, "pattern")) == ("m", "unstructured")
    assert argument(call(aten.gelu.default, "x", approximate="tanh"), "approximate") == "tanh"


def test_operands_of_products_that_take_lists():
    assert [str(v) for v in operands(call(aten.einsum.default, "ij,jk->ik", ["x", "w"]))] == ["x", "w"]
    assert [str(v) for v in operands(call(aten.addmm.default, "b", "x", "w"))] == [
        "x",
        "w",
    ]  # what is added is no operand


@pytest.mark.parametrize(
    ("node", "drawn"),
    [
        (call(aten.dropout.default, "x", 0.5, True), True),
        (call(aten.dropout.default, "x", 0.5, False), False),
        (call(aten.dropout_.default, "x", p=0.0, train=True), False),
        (call(aten.native_dropout.default, "x", 0.5, None), True),
        (call(aten.rrelu.default, "x"), False),
        (call(aten.rrelu.default, "x", training=True), True),
        (call(aten.bernoulli.p, "x", 0.5), True),
        (call(aten.scaled_dot_product_attention.default, "x", "y", "v"), False),
        (call(aten.scaled_dot_product_attention.default, "x", "y", "v", dropout_p=0.1), True),
        (call(aten.gru.input, "x", "y", ["w"], False, 2, 0.5, True, False, True), True),
        (call(aten.gru.input, "x", "y", ["w"], False, 2, 0.0, True, False, True), False),
    ],
)
def test_draws(node, drawn):
    assert draws(node) is drawn


def test_what_is_written():
    def norm(training):
        return call(aten.batch_norm.default, "x", "w", "b", "m", "v", training, 0.1, 1e-5, False)

    assert [str(v) for v in written(norm(True))] == ["m", "v"] and not list(written(norm(False)))
    assert [str(v) for v in written(call(aten.add_.Tensor, "x", "y"))] == ["x"]


def test_zero_of_zero_is_asked_of_the_operator():
    zero = [("mish", ()), ("hardtanh", (-1, 1)), ("clamp", (0,)), ("sign", ()), ("mul", (2.0,))]
    other = [("softplus", ()), ("hardtanh", (0.5, 1)), ("clamp", (0.1,)), ("exp", ()), ("add", (1,)), ("softmax", (0,))]

    def overload(name):
        packet = getattr(aten, name)
        return getattr(packet, "Tensor" if name in ("add", "mul") else "int" if name == "softmax" else "default")

    assert [keeps_zero(call(overload(n), "x", *a)) for n, a in zero] == [True] * len(zero)
    assert [keeps_zero(call(overload(n), "x", *a)) for n, a in other] == [False] * len(other)


def test_dimensions_count_from_the_front():
    assert (dimensions(-1, 4), dimensions([1, -2], 4), dimensions(None, 3)) == ([3], [1, 2], [0, 1, 2])
