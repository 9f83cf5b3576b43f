"""`export(precision="int8")`: from a masked program to a file in integers."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import ExportError
from sparsify.exporters import export, int8_forms
from sparsify.exporters.conversion import convert
from sparsify.exporters.grouped_linears import find_grouped_linears
from sparsify.exporters.int8_grouped import write_grouped_int8
from tests.cases import digits
from tests.exporters.grouped_mlp import kinds


def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


def convolutions():
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


@functools.cache
def trained(build):
    """A network with masks, trained once; tests do not change it."""
    x, y = digits(1200)
    torch.manual_seed(0)
    program = sp.trace(build(), (x[:2],)).train()
    optimizer = torch.optim.Adam(program.parameters(), lr=2e-3)
    method = sp.methods.one_shot(
        density=0.5 if build is convolutions else 0.25,
        pattern="grouped:32x4",
        prune_at=0.5,
        keep_dense=("*0.weight",) if build is convolutions else (),
    )
    trainer = sp.attach(method, program, optimizer, total_steps=60)
    for step in range(60):
        rows = slice(200 * (step % 6), 200 * (step % 6) + 200)
        nn.functional.cross_entropy(program(x[rows]), y[rows]).backward()
        trainer.step()
        optimizer.zero_grad()
    program = sp.Pipeline.parse("attach-calibration-head")(program.eval())
    program.tensor("calibration.temperature").fill_(1.3)
    return program


def most_int8(model):
    """How many of the grouped, then of all layers compute in integers."""
    found = kinds(model)
    return 100 * found.count("QLinearMatMul") + found.count("DequantizeLinear")


@pytest.mark.parametrize("build", [mlp, convolutions])
def test_every_int8_form_of_a_trained_network_keeps_its_predictions(build, tmp_path, monkeypatch):
    program, (x, y) = trained(build), digits(1797)
    monkeypatch.setattr(
        int8_forms, "times", lambda models, **_: {name: -most_int8(model) for name, (model, _) in models.items()}
    )
    monkeypatch.setattr(int8_forms, "time_layers", lambda *_, **__: {})
    result = export(
        program,
        tmp_path / "m.onnx",
        inputs=[x[1200:]],
        precision="int8",
        calibration=[x[:256]],
        labels=y[1200:],
        form="grouped",
    )
    assert result.int8 is not None and result.int8.decisions == 597
    assert result.int8.agreed >= 0.98 * 597 and result.int8.largest_error < 0.02
    model = onnx.load(tmp_path / "m.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.graph.doc_string and all(not node.doc_string for node in model.graph.node)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    name = session.get_inputs()[0].name
    for batch in (1, 7):
        logits, probabilities = session.run(["logits", "probabilities"], {name: x[:batch].numpy()})
        assert logits.shape == (batch, 10) and np.allclose(probabilities.sum(1), 1, atol=1e-5)
    assert "temperature fitted again: 1.3000 before" in result.int8.head
    assert result.int8.figures["nll_after"] <= result.int8.figures["nll_before"]
    assert {entry.domain for entry in model.opset_import} == {
        ""
    } and not result.forms.keys() - result.int8.chosen.layers.keys()


def test_grouped_layers_of_a_masked_program_are_found_in_its_graph():
    x, _ = digits(64)
    program = sp.Pipeline.parse("fold-masks | deploy | lower-grouped-linear{form=grouped}")(trained(mlp))
    model = convert(program, [x], 20)
    names = [value.name for value in model.graph.inputs]
    layers = find_grouped_linears(model.graph)
    tensors = [tensor for layer in layers for tensor in (layer.source.name, layer.result.name)]
    written = write_grouped_int8(model, None, int8_forms.observe(model, tensors, [{names[0]: x.numpy()}]))
    found = kinds(written)
    assert len(layers) == 3 and found.count("QLinearMatMul") == 2 and found.count("MatMulInteger") == 1
    assert found.count("QuantizeLinear") == 1 and "DequantizeLinear" not in found


def test_misuse_leaves_no_file(tmp_path):
    program, (x, _) = trained(mlp), digits(8)
    for options, message in (
        ({"precision": "int4"}, "fp32, int8"),
        ({"precision": "int8"}, r"calibration should hold 1 tensor\(s\), found 0"),
        ({"precision": "int8", "calibration": [x[:1]]}, "at least 2 calibration samples"),
        ({"precision": "int8", "calibration": [x], "labels": torch.zeros(3)}, "3 labels for 8 held-out inputs"),
        (
            {"precision": "int8", "calibration": [x], "batch": 9},
            "a batch size for timing that is at most their number; found 8 samples and batch size 9",
        ),
        ({"precision": "int8", "calibration": [x], "storage": "sparse"}, "storage 'dense'"),
    ):
        with pytest.raises(ExportError, match=message):
            export(program, tmp_path / "m.onnx", inputs=[x], **options)
    assert list(tmp_path.iterdir()) == []
