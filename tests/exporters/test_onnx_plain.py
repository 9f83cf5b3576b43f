"""Exported files as other tools meet them: loaded without a warning, checked strictly, quantized, and as plain as can be."""

from __future__ import annotations

import collections
import functools
import itertools
import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime import quantization
from torch import nn

import sparsify as sp
from sparsify.passes import Pipeline
from sparsify.version import __version__
from tests.cases import case, digits

GROUPED = "insert-masks{pattern=grouped:32 density=0.3}"


def wide_mlp():
    sizes = (64, 256, 256, 256, 10)
    parts = [part for pair in itertools.pairwise(sizes) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *parts[:-1])


@functools.cache
def program(name, pipeline):
    torch.manual_seed(0)
    made = sp.trace(wide_mlp(), (digits()[0],)) if name == "wide_mlp" else case(name).trace()
    return Pipeline.parse(f"{pipeline} | attach-calibration-head")(made.eval())


def inputs(name, count=16):
    return [digits(count)[0]] if name == "wide_mlp" else list(case(name).args)


@functools.cache
def exported(name, pipeline, **options):
    given = {**options, "inputs": inputs(name)}
    if options.get("precision") == "int8":
        given |= {"calibration": inputs(name), "held_out": inputs(name)}
    path = Path(tempfile.mkdtemp()) / "m.onnx"
    return path, sp.export(program(name, pipeline), path, **given)


def loaded(path):
    """A session at ONNX Runtime's own level of logging, and what it wrote to the file descriptor of stderr."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 2
    with tempfile.TemporaryFile() as said:
        before = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        finally:
            os.dup2(before, 2)
            os.close(before)
        said.seek(0)
        return session, said.read().decode()


def operators(path):
    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


FILES = [
    ("wide_mlp", GROUPED, {"form": "grouped"}),
    ("wide_mlp", GROUPED, {"form": "grouped", "selection": "gather"}),
    ("wide_mlp", GROUPED, {"form": "grouped", "batch": 8, "opset": 18}),
    ("wide_mlp", "insert-masks{pattern=grouped:32x4 density=0.3}", {"form": "grouped", "opset": 23}),
    ("wide_mlp", GROUPED, {"form": "grouped", "precision": "int8"}),
    ("wide_mlp", GROUPED, {"form": "grouped", "precision": "int8", "selection": "gather"}),
    ("mlp", "insert-masks{density=0.25}", {"form": "auto"}),
    ("mlp", "insert-masks{density=0.25}", {"form": "auto", "precision": "int8"}),
    ("conv_bn", "insert-masks{density=0.25}", {"form": "auto"}),
    ("wide", "insert-masks{pattern=grouped:16 density=0.5 keep-dense=0.weight,6.weight}", {"form": "grouped"}),
    ("attention", "insert-masks{pattern=grouped:8 density=0.3}", {"form": "grouped"}),
    ("embedded", "insert-masks{density=0.25}", {"form": "grouped"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "pipeline", "options"), FILES)
def test_a_file_is_loaded_without_a_word_and_holds_for_strict_tools(name, pipeline, options, tmp_path):
    path, _ = exported(name, pipeline, **options)
    session, said = loaded(path)
    assert said == ""
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    assert (model.producer_name, model.producer_version) == ("sparsify", __version__)
    opset = options.get("opset", 20)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert model.ir_version == {18: 8, 20: 9, 23: 11}[opset]
    quantization.quantize_dynamic(path, tmp_path / "dynamic.onnx")
    dynamic, said = loaded(tmp_path / "dynamic.onnx")
    assert said == ""
    given = {entry.name: x.numpy() for entry, x in zip(session.get_inputs(), inputs(name), strict=True)}
    before, after = (s.run(["logits"], given)[0] for s in (session, dynamic))
    assert np.abs(before - after).max() < 0.25 * np.abs(before).max()


@pytest.mark.parametrize("name", ["mlp", "wide_mlp", "conv_bn", "attention", "residual", "wide"])
def test_a_file_without_grouped_layers_has_the_operators_of_the_dense_one(name):
    pipeline = "insert-masks{density=0.5}"
    path, result = exported(name, pipeline, form="auto")
    assert "grouped" not in result.forms.values()
    assert operators(path) == operators(exported(name, pipeline, form="dense")[0])


def test_a_layer_that_stays_dense_is_the_product_it_was():
    pipeline = "insert-masks{pattern=grouped:32 density=0.3 keep-dense=5.weight,7.weight}"
    path, result = exported("wide_mlp", pipeline, form="grouped", batch=8)
    assert {name for name, form in result.forms.items() if form == "grouped"} == {"1.weight", "3.weight"}
    found = operators(path)
    assert (found["Conv"], found["MatMul"] + found["Gemm"]) == (2, 2)
    assert not {"Shape", "Equal", "If"} & found.keys()
