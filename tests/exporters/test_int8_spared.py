"""Where not every layer may be in integers: which may, what is written, and what is said."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import ExportWarning
from sparsify.exporters import int8, int8_dense, int8_forms, single_samples
from sparsify.exporters.int8_spared import agreeing_layers
from tests.cases import digits

LAYERS = tuple("abcdefghijkl")


@pytest.mark.parametrize("bad", ["a", "g", "l", "ab", "al", "dg"])
def test_layers_that_break_a_file_are_found_by_halving(bad):
    asked = []

    def good(part):
        asked.append(part)
        return not set(part) & set(bad)

    assert agreeing_layers(LAYERS, good, tries=30) == tuple(name for name in LAYERS if name not in bad)
    assert len(asked) == len(set(asked)) <= 14 and LAYERS not in asked


def test_parts_that_hold_alone_but_not_together_are_given_up_from_the_smallest():
    def good(part):  # each half agrees, both together do not
        return len(part) <= 6

    assert agreeing_layers(LAYERS, good) == LAYERS[:6]
    assert agreeing_layers(LAYERS, lambda part: False) == ()
    assert agreeing_layers(("a",), lambda part: False) == () == agreeing_layers((), lambda part: True)
    asked = []
    agreeing_layers(LAYERS, lambda part: asked.append(part) or False, tries=3)
    assert len(asked) <= 3


class Outlier(nn.Module):
    """A network of four layers, one of which reads a number ten thousand times as large as the others."""

    def __init__(self, layers=4):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 64) for _ in range(layers - 1)])
        self.last = nn.Linear(64, 10)
        size = torch.ones(64)
        size[36] = 1e4
        self.register_buffer("size", size)
        with torch.no_grad():
            self.layers[-1].weight[:, 36] /= 1e4

    def forward(self, x):
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.last(self.layers[-1](x * self.size).relu())


@pytest.fixture
def integers_first(monkeypatch):
    def times(models, **_):
        kinds = {name: [node.op_type for node in model.graph] for name, (model, _) in models.items()}
        return {name: 100.0 - found.count("DequantizeLinear") for name, found in kinds.items()}

    for module in (int8, int8_forms):
        monkeypatch.setattr(module, "times", times)
    monkeypatch.setattr(int8_forms, "time_layers", lambda *_, **__: {})


def exported(model, path, **options):
    x, _ = digits(600)
    program = sp.trace(model, (x[:2],)).eval()
    given = {"inputs": [x[:64]], "calibration": [x[:256]], "held_out": [x[256:]], "precision": "int8"}
    return program, x, sp.export(program, path, **given | options)


def test_a_layer_that_breaks_the_file_stays_in_floating_point(tmp_path, integers_first):
    program, x, result = exported(Outlier(), tmp_path / "m.onnx")
    assert result.int8 is not None and result.int8.chosen.name == "dense, 2 of 3 layers int8"
    assert dict(result.int8.chosen.layers) == {
        "layers.0.weight": "int8 dense", "layers.1.weight": "int8 dense", "layers.2.weight": "fp32 dense", "last.weight": "fp32 dense",
    }  # fmt: skip
    assert "output 'logits'" in result.int8.passed_over["dense, dense layers int8"] and not result.int8.refused
    assert result.int8.errors["logits"] < 0.1
    logits = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"x": x.numpy()})[0]
    assert np.abs(logits - program(x).detach().numpy()).max() < 0.1 * np.abs(logits).max()


def test_where_no_layer_may_be_in_integers_the_file_is_fp32_and_the_warning_says_why(tmp_path, integers_first):
    x, _ = digits(600)
    program = sp.trace(Outlier(2), (x[:2],)).eval()
    sp.export(program, tmp_path / "fp32.onnx", inputs=[x[:64]])
    before = (tmp_path / "fp32.onnx").read_bytes()
    with pytest.warns(
        ExportWarning,
        match=r"computes in fp32, not in int8: 'dense, dense layers int8': output 'logits': its error is",
    ):
        _, _, result = exported(Outlier(2), tmp_path / "m.onnx")
    assert result.int8 is not None and result.int8.chosen.name == "dense, fp32" and result.int8.refused
    model = onnx.load(tmp_path / "m.onnx")
    assert {entry.key: entry.value for entry in model.metadata_props}["precision"] == "dense, fp32"
    assert onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"x": x.numpy()})[0].shape == (600, 10)
    assert (tmp_path / "fp32.onnx").read_bytes() == before


def test_a_quantizer_that_fails_costs_no_file(tmp_path, integers_first, monkeypatch):
    def fails(*_, **__):
        raise ValueError("no kernel")

    monkeypatch.setattr(int8_dense.quantization, "quantize_static", fails)
    with pytest.warns(ExportWarning, match=r"could not be made: ONNX Runtime's quantizer failed: no kernel"):
        _, _, result = exported(Outlier(), tmp_path / "m.onnx")
    assert result.int8 is not None and result.int8.chosen.name == "dense, fp32"


def test_a_form_that_does_not_run_is_passed_over(tmp_path, integers_first, monkeypatch):
    quantize = int8_dense.quantization.quantize_static

    def broken(given, path, *arguments, **options):
        quantize(given, path, *arguments, **options)
        model = onnx.load(path)
        next(node for node in model.graph.node if node.op_type == "Gemm").op_type = "NoSuchOperator"
        onnx.save(model, path)

    monkeypatch.setattr(int8_dense.quantization, "quantize_static", broken)
    with pytest.warns(ExportWarning, match=r"could not be made: ONNX Runtime cannot run the file"):
        exported(Outlier(), tmp_path / "m.onnx")


def test_trials_of_layers_that_fail_leave_the_other_forms(tmp_path, integers_first, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("cannot be cut out")

    monkeypatch.setattr(int8_forms, "time_layers", fails)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    _, _, result = exported(model, tmp_path / "m.onnx")
    assert result.int8 is not None and result.int8.chosen.integers == 1 and not result.int8.refused
    assert result.int8.passed_over == {"mixed, by layer": "it could not be made: RuntimeError: cannot be cut out"}


def test_a_file_that_is_written_otherwise_than_it_was_judged_is_passed_over(tmp_path, integers_first, monkeypatch):
    monkeypatch.setattr(single_samples, "_same", lambda want, have: False)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    with pytest.warns(ExportWarning, match="output 'logits' depends on how inputs are selected"):
        exported(model, tmp_path / "m.onnx")
