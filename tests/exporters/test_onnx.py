"""The exported file: exact zeros, standard operators, dynamic batch, and a live program that is not touched."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

import sparsify as sp
from sparsify.calibration import evaluate, fit
from sparsify.errors import ExportError, TrainingError
from sparsify.exporters import export
from sparsify.exporters import onnx as exporter
from sparsify.parts.samples import TensorSamples
from sparsify.passes import Pipeline
from tests.cases import CASES, digits


def sparse(case, pipeline="insert-masks{density=0.25} | attach-calibration-head"):
    return Pipeline.parse(pipeline)(case.trace().eval())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_exports_with_parity_and_exact_zeros(case, tmp_path):
    program = sparse(case)
    before = {name: value.clone() for name, value in program.state_dict().items()}
    text = program.text()
    result = export(program, tmp_path / "m.onnx", inputs=case.args, form="dense")
    assert program.text() == text
    assert all(torch.equal(before[name], value) for name, value in program.state_dict().items())
    assert result.nonzeros == program.costs().active and result.positions == program.costs().maskable
    assert result.parity.batches == (1, 16) and result.parity.largest_error <= 1e-4
    model = onnx.load(tmp_path / "m.onnx")
    assert {node.domain for node in model.graph.node} <= {""}
    assert [o.name for o in model.graph.output] == list(program.output_names("eval"))
    assert sum(int(np.count_nonzero(numpy_helper.to_array(i) == 0)) for i in model.graph.initializer) >= (
        result.positions - result.nonzeros
    )
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    given = {spec.name: x[:5].numpy() for spec, x in zip(program.input_specs, case.args, strict=True)}
    assert session.run(["logits"], given)[0].shape == (5, 10)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_exports_with_parity_where_its_zeros_allow_smaller_layers(case, tmp_path):
    program = sparse(case, "insert-masks{density=0.05} | attach-calibration-head")
    result = export(program, tmp_path / "m.onnx", inputs=case.args, form="grouped")
    assert "grouped" in result.forms.values()
    assert result.parity.largest_error <= 1e-4
    assert {node.domain for node in onnx.load(tmp_path / "m.onnx").graph.node} <= {""}


def test_same_program_same_bytes_and_no_paths(tmp_path):
    program = sparse(CASES[1])
    for name in ("a", "b"):
        export(program, tmp_path / f"{name}.onnx", inputs=CASES[1].args, metadata={"method": "test"})
    data = (tmp_path / "a.onnx").read_bytes()
    assert data == (tmp_path / "b.onnx").read_bytes()
    assert b"site-packages" not in data and b".py" not in data


def test_sparse_storage_is_smaller_and_equal(tmp_path):
    program = sparse(CASES[0], "insert-masks{density=0.05}")
    dense = export(program, tmp_path / "d.onnx", inputs=CASES[0].args)
    small = export(program, tmp_path / "s.onnx", inputs=CASES[0].args, storage="sparse")
    assert small.bytes < dense.bytes
    x = {program.input_specs[0].name: CASES[0].args[0].numpy()}
    results = [onnxruntime.InferenceSession(str(p)).run(None, x)[0] for p in (dense.path, small.path)]
    assert np.array_equal(*results)


@pytest.mark.parametrize("opset", [18, 20, 21])
def test_opset_is_selectable(opset, tmp_path):
    export(sparse(CASES[0]), tmp_path / "m.onnx", inputs=CASES[0].args, opset=opset)
    assert onnx.load(tmp_path / "m.onnx").opset_import[0].version == opset


def test_misuse_leaves_no_file(tmp_path):
    program = sparse(CASES[0])
    for options, message in (({"opset": 7}, "between 18"), ({"storage": "zip"}, "dense, sparse")):
        with pytest.raises(ExportError, match=message):
            export(program, tmp_path / "m.onnx", inputs=CASES[0].args, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_disagrees_is_refused(tmp_path, monkeypatch):
    def negated(*args, **kwargs):
        model = convert(*args, **kwargs)
        for value in model.graph.initializers.values():
            array = value.const_value.numpy()
            if array.dtype == np.float32 and array.ndim == 2:
                value.const_value = ir.tensor(-array)
        return model

    convert = exporter._convert
    monkeypatch.setattr(exporter, "_convert", negated)
    with pytest.raises(ExportError, match=r"output 'logits' of the ONNX file differs .* Nothing was written"):
        export(sparse(CASES[0]), tmp_path / "m.onnx", inputs=CASES[0].args)
    assert list(tmp_path.iterdir()) == []


def test_inputs_that_cannot_tell_are_refused(tmp_path):
    program, images = CASES[0].trace().eval(), CASES[0].args[0]
    for given, message in (
        (torch.zeros(8, 1, 8, 8), "one and the same number"),
        (images[:1].repeat(8, 1, 1, 1), "8 times the same sample"),
        (images[:0], "no sample"),
    ):
        with pytest.raises(ExportError, match=message):
            export(program, tmp_path / "m.onnx", inputs=[given])
    with pytest.raises(ExportError, match=r"1 tensor\(s\) \(.*\), found 2"):
        export(program, tmp_path / "m.onnx", inputs=[images, images])
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_draws_in_eval_mode_is_refused(tmp_path):
    class Drawing(torch.nn.Linear):
        def forward(self, x):
            return torch.nn.functional.dropout(super().forward(x.flatten(1)), 0.5, training=True)

    x = digits(8)[0]
    with pytest.warns(UserWarning):
        program = sp.trace(Drawing(64, 10).eval(), (x,)).eval()
    with pytest.raises(ExportError, match="draws random numbers in eval mode"):
        export(program, tmp_path / "m.onnx", inputs=[x])


def test_the_file_runs_without_torch(tmp_path):
    export(sparse(CASES[1]), tmp_path / "m.onnx", inputs=CASES[1].args)
    code = f"""
        import sys
        sys.modules["torch"] = None
        import numpy, onnxruntime
        session = onnxruntime.InferenceSession({str(tmp_path / "m.onnx")!r})
        names = [i.name for i in session.get_inputs()]
        out = session.run(["probabilities"], {{names[0]: numpy.zeros((3, 1, 8, 8), numpy.float32)}})[0]
        assert out.shape == (3, 10) and abs(out.sum() - 3) < 1e-5
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


@pytest.mark.parametrize(
    "kind",
    ["temperature", "vector", "matrix", "dirichlet", "ensemble-temperature", "isotonic", "histogram", "h-calibration"],
)
def test_fitting_the_head_lowers_held_out_nll_and_touches_nothing_else(kind):
    x, y = digits(400)
    program = sp.trace(CASES[0].build(), (x[:8],))
    optimizer = torch.optim.SGD(program.parameters(), lr=0.2, momentum=0.9)
    for _ in range(60):
        torch.nn.functional.cross_entropy(program(x[:200]), y[:200]).backward()
        optimizer.step()
        optimizer.zero_grad()
    program = Pipeline.parse(f"attach-calibration-head{{kind={kind}}}")(program.eval())
    before = {n: v.clone() for n, v in program.state_dict().items() if not n.startswith("calibration")}
    log = fit(program, TensorSamples(x[200:], y[200:]))
    assert log.nll_after < log.nll_before
    assert all(torch.equal(value, program.state_dict()[name]) for name, value in before.items())
    probabilities = evaluate(program, TensorSamples(x[200:], y[200:]))["probabilities"]
    picked = probabilities[torch.arange(200), y[200:]]
    assert float(-picked.log().mean()) == pytest.approx(log.nll_after, rel=1e-5)


def test_fitting_without_a_head_says_so():
    x, y = digits()
    with pytest.raises(TrainingError, match="attach-calibration-head"):
        fit(sp.trace(CASES[0].build(), (x,)), TensorSamples(x, y))
