"""Selections of single numbers: other operators for one sample, the same values."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsify.errors import ExportError
from sparsify.exporters import single_samples as module
from tests.exporters import grouped_mlp

RNG = np.random.default_rng(0)
TABLES = [RNG.integers(0, 64, (16, 24)), RNG.integers(0, 128, (16, 32))]
WEIGHTS = [RNG.standard_normal((16, 8, 24)).astype(np.float32), RNG.standard_normal((16, 4, 32)).astype(np.float32)]
PICKED = ("Reshape", "GatherElements", "Reshape")


def two_layers(batch="batch", *, width=None, tables=TABLES, between=()):
    """Two grouped layers over [F, N]; the first layer's values are an output as well."""
    width = batch if width is None else width
    nodes = [
        helper.make_node("Transpose", ["x"], ["columns"], perm=[1, 0]),
        helper.make_node("Gather", ["columns", "i0"], ["g0"], axis=0),
        helper.make_node("MatMul", ["w0", "g0"], ["m0"]),
        helper.make_node("Reshape", ["m0", "rows"], ["h"]),
        *between,
        helper.make_node("Gather", ["h", "i1"], ["g1"], axis=0),
        helper.make_node("MatMul", ["w1", "g1"], ["y"]),
    ]
    constants = {f"i{i}": t for i, t in enumerate(tables)} | {f"w{i}": w for i, w in enumerate(WEIGHTS)}
    constants["rows"] = np.array([128, -1])
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 64])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [16, 4, width]),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, [128, width]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def single_samples(model):
    given = ir.from_proto(model)
    made = grouped_mlp.single_samples(given)
    return model if made is given else ir.to_proto(made)


def run(model, *arguments):
    return grouped_mlp.run(ir.from_proto(model), *arguments)


def check_same(plain, written, batches):
    module.check_same(ir.from_proto(plain), ir.from_proto(written), batches)


def kinds(nodes):
    return [node.op_type for node in nodes]


def branches(node):
    return {attribute.name: kinds(attribute.g.node) for attribute in node.attribute}


def expected(x):
    hidden = np.einsum("gok,gkn->gon", WEIGHTS[0], x.T[TABLES[0]]).reshape(128, -1)
    return np.einsum("gok,gkn->gon", WEIGHTS[1], hidden[TABLES[1]]), hidden


def test_both_branches_compute_the_same_from_weights_stored_once():
    model = two_layers()
    written = single_samples(model)
    onnx.checker.check_model(written, full_check=True)
    for batch in (1, 2, 5):
        x = RNG.standard_normal((batch, 64)).astype(np.float32)
        for have, want in zip(run(written, x, "y", "h"), expected(x), strict=True):
            assert have.shape == want.shape and np.allclose(have, want, atol=1e-4)
    whole = next(node for node in written.graph.node if node.op_type == "If")
    assert branches(whole) == {
        "then_branch": ["Transpose", *PICKED, "MatMul", "Reshape", *PICKED],
        "else_branch": ["Transpose", "Gather", "MatMul", "Reshape", "Gather"],
    }
    assert kinds(written.graph.node) == ["Shape", "Equal", "Reshape", "Reshape", "If", "MatMul"]
    assert list(whole.output) == ["h", "g1"]
    before = {item.name for item in model.graph.initializer}
    assert all(np.prod(item.dims) <= 3 for item in written.graph.initializer if item.name not in before)
    assert single_samples(written) is written


def test_the_runtime_keeps_the_operators_and_folds_the_tables(tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(single_samples(two_layers()).SerializeToString(), options)
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    assert sorted(kinds(nodes)) == ["Equal", "If", "MatMul", "Shape"]
    whole = next(node for node in nodes if node.op_type == "If")
    assert branches(whole)["then_branch"].count("GatherElements") == 2
    assert branches(whole)["else_branch"].count("Gather") == 2


def test_a_fixed_batch_needs_no_branch():
    one = single_samples(two_layers(1))
    onnx.checker.check_model(one, full_check=True)
    assert "If" not in kinds(one.graph.node) and kinds(one.graph.node).count("GatherElements") == 2
    x = RNG.standard_normal((1, 64)).astype(np.float32)
    assert np.allclose(run(one, x, "y")[0], expected(x)[0], atol=1e-4)
    several = two_layers(2)
    assert single_samples(several) is several


def test_what_does_not_pay_or_is_not_of_the_batch_stays():
    few = two_layers(tables=[table[:, :1] for table in TABLES])
    assert single_samples(few) is few
    other = two_layers(width="4*batch")  # 4 numbers of a sample in a row
    other.graph.node[0].CopyFrom(helper.make_node("Reshape", ["x", "lines"], ["columns"]))
    other.graph.initializer.append(numpy_helper.from_array(np.array([64, -1]), "lines"))
    other.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 256
    assert single_samples(other) is other


def test_layers_that_a_runtime_prepares_stay_outside_of_branches():
    between = [helper.make_node("MatMul", ["eye", "h"], ["left"]), helper.make_node("MatMul", ["across", "h"], ["z"])]
    model = two_layers(between=between)
    for name, size in (("eye", 128), ("across", 128)):
        model.graph.initializer.append(numpy_helper.from_array(np.eye(size, dtype=np.float32), name))
    assert kinds(single_samples(model).graph.node).count("If") == 1  # constants on the left are read as they are
    turned = two_layers(
        between=[
            helper.make_node("Transpose", ["h"], ["t"], perm=[1, 0]),
            helper.make_node("MatMul", ["t", "eye"], ["dense"]),
            helper.make_node("Transpose", ["dense"], ["back"], perm=[1, 0]),
        ]
    )
    turned.graph.initializer.append(numpy_helper.from_array(np.eye(128, dtype=np.float32), "eye"))
    next(node for node in turned.graph.node if "i1" in node.input).input[0] = "back"
    written = single_samples(turned)
    outside = kinds(written.graph.node)
    assert outside.count("If") == 2 and outside.count("MatMul") == 3
    for batch in (1, 3):
        x = RNG.standard_normal((batch, 64)).astype(np.float32)
        assert np.allclose(run(written, x, "y")[0], expected(x)[0], atol=1e-4)


def test_integers_are_selected_too_and_what_moves_them_is_inside():
    x = RNG.standard_normal((3, 64)).astype(np.float32)
    constants = {"i": TABLES[0].repeat(2, 0), "scale": np.float32(0.02), "zero": np.uint8(128)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("Transpose", ["d"], ["columns"], perm=[1, 0]),
        helper.make_node("Gather", ["columns", "i"], ["y"], axis=0),
        helper.make_node("Transpose", ["q"], ["z0"], perm=[1, 0]),
        helper.make_node("Gather", ["z0", "i"], ["z"], axis=0),
    ]
    graph = helper.make_graph(
        nodes,
        "integers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [32, 24, "batch"]),
            helper.make_tensor_value_info("z", TensorProto.UINT8, [32, 24, "batch"]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    written = single_samples(model)
    assert kinds(written.graph.node).count("If") == 1 and "Transpose" not in kinds(written.graph.node)
    for batch in (1, 3):
        for have, want in zip(run(written, x[:batch]), run(model, x[:batch]), strict=True):
            assert have.dtype == want.dtype and np.array_equal(have, want)


def test_a_branch_that_differs_is_refused():
    model = two_layers()
    written = single_samples(model)
    x = RNG.standard_normal((4, 64)).astype(np.float32)
    check_same(model, written, [{"x": x[:1]}, {"x": x}])
    whole = next(node for node in written.graph.node if node.op_type == "If")
    for attribute, factor in itertools.product(whole.attribute, (2, np.nan, np.inf)):
        broken = onnx.ModelProto.FromString(written.SerializeToString())
        node = next(n for n in broken.graph.node if n.op_type == "If")
        graph = next(a.g for a in node.attribute if a.name == attribute.name)
        next(n for n in graph.node if n.op_type == "MatMul").input[0] = "changed"
        broken.graph.initializer.append(numpy_helper.from_array(np.float32(factor) * WEIGHTS[0], "changed"))
        with pytest.raises(ExportError, match=rf"inputs x \[{1 if attribute.name == 'then_branch' else 4}, 64\]"):
            check_same(model, broken, [{"x": x[:1]}, {"x": x}])
