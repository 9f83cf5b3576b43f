"""Layer norms folded: worked by hand, refused where it brings nothing, and gone from the exported file."""

from __future__ import annotations

import collections

import onnx
import pytest
import torch
from torch import nn

import sparsify as sp
from tests.cases import digits

aten = torch.ops.aten


class Normed(nn.Module):
    """Rows of an image through a layer norm, which `readers` linear layers read."""

    def __init__(self, readers=1, bias=True):
        super().__init__()
        self.embed, self.norm = nn.Linear(8, 64), nn.LayerNorm(64)
        self.layers = nn.ModuleList(nn.Linear(64, 64, bias=bias) for _ in range(readers))
        self.head = nn.Linear(64, 10)
        with torch.no_grad():
            self.norm.weight.uniform_(0.5, 1.5)
            self.norm.bias.uniform_(-1, 1)
            for layer in self.layers:
                layer.weight[:, ::4] = 0.0
                layer.weight[:, 1::4] = 0.0

    def forward(self, x):
        x = self.norm(self.embed(x.squeeze(1)))
        return self.head(sum(layer(x) for layer in self.layers).mean(1))


def folded(model):
    torch.manual_seed(0)
    x = digits(6)[0]
    program = sp.Pipeline.parse("insert-masks{density=1.0} | fold-masks | deploy")(sp.trace(model, (x[:4],)).eval())
    after, logs = sp.Pipeline.parse("fold-layer-norm").run(program)
    torch.testing.assert_close(after(x), program(x), rtol=0, atol=1e-5)
    return after, logs[0]


def norm_of(program):
    return next(node for node in program.phases["eval"].graph.nodes if node.target is aten.layer_norm.default)


@pytest.mark.parametrize("bias", [True, False])
def test_by_hand(bias):
    model = Normed(bias=bias)
    scale, shift, weight = model.norm.weight.detach(), model.norm.bias.detach(), model.layers[0].weight.detach().clone()
    old = model.layers[0].bias.detach().clone() if bias else torch.zeros(64)
    after, log = folded(model)
    assert log.changed == ["norm"] and norm_of(after).args[2:4] == (None, None)
    torch.testing.assert_close(after.get_parameter("layers.0.weight"), weight * scale)
    torch.testing.assert_close(after.get_parameter("layers.0.bias"), old + weight @ shift)
    assert not after.get_parameter("layers.0.weight")[:, ::4].any()  # zeros stay zeros


def test_every_reader_takes_its_share():
    after, log = folded(Normed(readers=3))
    assert log.changed == ["norm"] and norm_of(after).args[2:4] == (None, None)


class Residual(Normed):
    def forward(self, x):
        x = self.norm(self.embed(x.squeeze(1)))
        return self.head((x + self.layers[0](x)).mean(1))


class Shared(Normed):
    def forward(self, x):
        x = self.norm(self.embed(x.squeeze(1)))
        return self.head(self.layers[0](torch.relu(self.layers[0](x))).mean(1))


class Dense(Normed):
    def __init__(self):
        super().__init__()
        nn.init.normal_(self.layers[0].weight)


class Planes(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.LayerNorm((8, 8)), nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.norm(x)).mean((1, 2))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Residual, "something else than linear layers reads it"),
        (Shared, "a parameter of a layer that reads it is used more than once"),
        (Dense, "a layer that reads it is dense"),
        (Planes, "it normalises more than the last dimension"),
    ],
)
def test_what_is_left_alone_says_why(model, reason):
    after, log = folded(model())
    assert log.changed == [] and [text for _, text in log.skipped] == [reason]
    assert all(isinstance(argument, torch.fx.Node) for argument in norm_of(after).args[2:4])


def test_a_norm_without_scale_and_shift_has_nothing_to_fold():
    model = Normed()
    model.norm = nn.LayerNorm(64, elementwise_affine=False)
    _, log = folded(model)
    assert [text for _, text in log.skipped] == ["it has neither scale nor shift"]


def test_tokens_are_multiplied_with_their_bias_in_one_operator(tmp_path):
    """An exported file has one convolution of width 1 for a grouped layer of tokens, and no operator for its bias."""
    torch.manual_seed(0)
    x = digits(20)[0]
    layers = (nn.Linear(8, 256), nn.Linear(256, 256), nn.LayerNorm(256), nn.Linear(256, 256), nn.GELU(), nn.Flatten())
    model = nn.Sequential(nn.Flatten(1, 2), *layers, nn.Linear(2048, 10))
    masks = "insert-masks{pattern=grouped:64 density=0.1 allocation=uniform keep-dense=1.weight,7.weight}"
    program = sp.Pipeline.parse(masks)(sp.trace(model, (x,)).eval())
    result = sp.export(program, tmp_path / "m.onnx", inputs=[x])
    found = collections.Counter(node.op_type for node in onnx.load(result.path).graph.node)
    assert result.parity.largest_error <= 1e-4 and result.forms["2.weight"] == result.forms["4.weight"] == "grouped"
    assert found["Conv"] == 2 and found["MatMul"] == 3  # embedding, and the two means of the layer norm
    assert found["Add"] == 2 and found["Mul"] == 1  # of the embedding and below the norm's root; the norm's square
