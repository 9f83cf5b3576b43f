"""Grouped linear layers in networks as people write them: the program computes the same, and can be exported."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn, relu

import sparsify as sp
from sparsify.errors import ExportWarning
from sparsify.exporters import fp32
from sparsify.exporters import onnx as exporter
from sparsify.ir import trace
from sparsify.passes import Pipeline

LOWERED = (
    "fold-masks | deploy | fold-batch-norm | order-outputs | eliminate-unread-outputs | fold-layer-norm | absorb-biases | "
    "lower-grouped-linear{form=grouped}"
)
VECTORS, TOKENS, IMAGES = (9, 64), (9, 4, 64), (9, 3, 3, 64)


class Net(nn.Module):
    """Linear layers, and what they are put together by."""

    def __init__(self, function, *sizes):
        super().__init__()
        self.layers, self.function = nn.ModuleList(nn.Linear(*size) for size in sizes), function

    def forward(self, x):
        return self.function(self.layers, x)


class TwoNames(nn.Module):
    """A layer that is an attribute and a part of a sequence."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(64, 64), nn.Linear(64, 10)
        self.both = nn.Sequential(self.first, nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x):
        return self.head(relu(self.both(x)))


def chain(*middle):
    return lambda: nn.Sequential(nn.Linear(64, 64), *middle, nn.Linear(64, 10))


def net(function, *sizes):
    return lambda: Net(function, *sizes)


def read_around(f, x):
    y = f[0](x)
    return f[2](y.relu_() + f[1](y) + y)


def two_readers(f, x):
    y = relu(f[0](x))
    return f[3](relu(f[1](y)) + f[2](y))


def gate(f, x):
    left, right = f[0](x).chunk(2, -1)
    return f[1](left * torch.sigmoid(right))


SQUARE, HEAD, WIDE = (64, 64), (64, 10), (256, 10)
NETWORKS = {
    "in-place activations and dropout": (
        VECTORS,
        chain(nn.ReLU(True), nn.Dropout(), nn.Linear(*SQUARE), nn.Hardtanh(inplace=True), nn.Dropout(0.5, True)),
    ),
    "in-place activations of other kinds": (
        VECTORS,
        chain(nn.ELU(inplace=True), nn.Linear(*SQUARE), nn.LeakyReLU(0.1, True), nn.Linear(*SQUARE), nn.SELU(True)),
    ),
    "in-place, read before and after": (VECTORS, net(read_around, SQUARE, SQUARE, HEAD)),
    "in-place behind norms": (
        VECTORS,
        chain(nn.BatchNorm1d(64), nn.ReLU(True), nn.Linear(*SQUARE), nn.GroupNorm(4, 64), nn.ReLU(True)),
    ),
    "view of tokens as one row": (TOKENS, net(lambda f, x: f[1](relu(f[0](x)).view(x.shape[0], -1)), SQUARE, WIDE)),
    "view of tokens as rows": (
        TOKENS,
        net(lambda f, x: f[1](relu(f[0](x)).view(-1, 64)).view(x.shape[0], 4, 64).mean(1), SQUARE, SQUARE),
    ),
    "view after an operator that is not followed": (
        TOKENS,
        net(lambda f, x: f[1](torch.exp(-f[0](x).abs()).view(x.shape[0], -1)), SQUARE, WIDE),
    ),
    "windows of an image": (
        IMAGES,
        net(
            lambda f, x: f[1](f[0](x).view(x.shape[0], 3, 3, 4, 16).transpose(2, 3).reshape(x.shape[0], 9, 64)), SQUARE, SQUARE
        ),
    ),
    "flattened, unflattened": (
        TOKENS,
        net(lambda f, x: f[2](f[1](f[0](x).flatten(0, 1)).unflatten(-1, (4, 16)).sum(-1)), SQUARE, SQUARE, (4, 10)),
    ),
    "one module under two names": (VECTORS, TwoNames),
    "one weight in two layers": (VECTORS, net(lambda f, x: f[1](relu(f[0](relu(f[0](x))))), SQUARE, HEAD)),
    "two readers of one value": (VECTORS, net(two_readers, SQUARE, SQUARE, SQUARE, HEAD)),
    "mixing over tokens": (
        TOKENS,
        net(lambda f, x: f[2](f[1](relu(f[0](x)).transpose(1, 2)).transpose(1, 2)), SQUARE, (4, 4), HEAD),
    ),
    "slices of tokens and of features": (
        TOKENS,
        net(lambda f, x: f[2](f[1](relu(f[0](x))[:, 0, :32])), SQUARE, (32, 64), HEAD),
    ),
    "chunks as a gate": (TOKENS, net(gate, (64, 128), SQUARE)),
    "split and joined": (
        VECTORS,
        net(lambda f, x: f[1](torch.cat(f[0](x).split([16, 48], -1)[::-1], -1)), SQUARE, SQUARE),
    ),
    "einsum": (
        TOKENS,
        net(lambda f, x: f[1](torch.einsum("ntf,nsf->nts", relu(f[0](x)), x)), SQUARE, (4, 10)),
    ),
    "residual between the two forms": (
        TOKENS,
        net(lambda f, x: f[2](x + f[1](relu(f[0](x)))), SQUARE, SQUARE, HEAD),
    ),
    "added by broadcasting": (
        TOKENS,
        net(
            lambda f, x: f[2](torch.sub(f[1](relu(f[0](x))), x.mean(1, keepdim=True), alpha=2)), SQUARE, SQUARE, HEAD
        ),
    ),
    "a layer norm over two dimensions": (
        TOKENS,
        net(lambda f, x: f[1](nn.functional.layer_norm(relu(f[0](x)), (4, 64))), SQUARE, SQUARE),
    ),
    "a block of a transformer": (
        TOKENS,
        lambda: nn.Sequential(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), nn.Linear(*HEAD)),
    ),
}  # fmt: skip


@functools.cache
def masked(name):
    """A program with masks, traced once, and its inputs; tests do not change it."""
    shape, make = NETWORKS[name]
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(shape)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=1.5 * layer.in_features**-0.5)
    return Pipeline.parse("insert-masks{pattern=grouped:16 density=0.4}")(trace(model, (x,)).eval()), x


@pytest.mark.parametrize("name", NETWORKS)
def test_the_lowered_program_computes_the_same(name):
    program, x = masked(name)
    want = program.outputs(x)
    lowered, logs = Pipeline.parse(LOWERED).run(program)
    have = lowered.eval().outputs(x)
    assert logs[-1].changed or name == "one weight in two layers"
    for key, value in want.items():
        assert (have[key] - value).abs().max() <= 1e-5 * value.abs().max()


@pytest.mark.parametrize(
    "name", ["in-place activations and dropout", "windows of an image", "one module under two names"]
)
def test_the_file_holds_grouped_layers(name, tmp_path):
    program, x = masked(name)
    result = sp.export(program, tmp_path / "m.onnx", inputs=[x], form="grouped")
    assert [form for form in result.forms.values() if form == "grouped"]
    assert {"Gather"} <= {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}


@pytest.mark.parametrize("broken", ["_convert", "check_budgets", "prove"])
def test_a_form_that_fails_is_written_dense_and_says_so(broken, tmp_path, monkeypatch, recwarn):
    program, x = masked("two readers of one value")
    sp.export(program, tmp_path / "dense.onnx", inputs=[x], form="dense")
    module = exporter if broken == "_convert" else fp32
    original, calls = getattr(module, broken), []

    def fails_first(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise RuntimeError("no such operator\nand more")
        return original(*arguments)

    monkeypatch.setattr(module, broken, fails_first)
    recwarn.clear()
    result = sp.export(program, tmp_path / "m.onnx", inputs=[x], form="grouped")
    assert set(result.forms) == {site.weight for site in program.mask_sites()}
    made = broken != "_convert"
    wrong = "it was made, and was wrong: " if made else ""
    reason = f"dense: the file in another form was not usable ({wrong}RuntimeError: no such operator)"
    assert set(result.forms.values()) == {reason}
    warned = [str(one.message) for one in recwarn if one.category is ExportWarning]
    assert len(warned) == made and all("in form 'grouped' was wrong" in text for text in warned)
    assert (tmp_path / "m.onnx").read_bytes() == (tmp_path / "dense.onnx").read_bytes()
    with pytest.raises(RuntimeError, match="no such operator"):
        calls.clear()
        sp.export(program, tmp_path / "none.onnx", inputs=[x], form="dense")


def test_a_grouped_file_that_disagrees_is_never_a_quiet_success(tmp_path, monkeypatch):
    program, x = masked("two readers of one value")
    original, selected = exporter._convert, []

    def negated(*arguments):
        model = original(*arguments)
        if any(node.op_type == "Gather" for node in model.graph):
            selected.append(model)
            for value in model.graph.initializers.values():
                array = value.const_value.numpy()
                if array.dtype == np.float32 and array.ndim > 1:
                    value.const_value = ir.tensor(-array)
        return model

    monkeypatch.setattr(exporter, "_convert", negated)
    with pytest.warns(ExportWarning, match="differs from the program"):
        result = sp.export(program, tmp_path / "m.onnx", inputs=[x], form="grouped")
    assert selected and all("it was made, and was wrong: output" in form for form in result.forms.values())
    assert result.parity.share <= 1
