"""Biases absorbed: worked by hand, and through a chain."""

from __future__ import annotations

import torch
from torch import nn

import sparsify as sp
from tests.cases import digits


def absorbed(model, x, prefix="insert-masks | fold-masks | deploy"):
    program = sp.Pipeline.parse(prefix)(sp.trace(model, (x[:4],)).eval())
    after, logs = sp.Pipeline.parse("absorb-biases").run(program)
    torch.testing.assert_close(after(x), program(x), rtol=0, atol=1e-5)
    return after, logs[0]


def biases(program):
    graph = program.phases["eval"].graph
    return [len(node.args) > 2 for node in graph.nodes if node.target is torch.ops.aten.linear.default]


def test_by_hand():
    model = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(), nn.Linear(64, 64))
    with torch.no_grad():
        model[2].weight[:, 1::2] = 0.0  # scattered, or the inputs would lie in chunks
    bias = model[2].bias.clone()
    after, log = absorbed(model, torch.randn(6, 2))
    assert log.changed == ["2.weight"] and biases(after) == [True, False]
    assert after.get_parameter("0.weight")[63].tolist() == [0.0, 0.0] and after.get_parameter("0.bias")[63] == 1.0
    assert torch.equal(after.get_parameter("2.weight")[:, 63], bias)


def test_a_constant_is_handed_on_and_scaled_by_the_activation():
    layers = (
        nn.Linear(64, 256),
        nn.GELU(),
        nn.Linear(256, 256),
        nn.GELU(),
        nn.Linear(256, 256),
        nn.GELU(),
        nn.Linear(256, 10),
    )
    masks = "insert-masks{pattern=grouped:64 density=0.1 keep-dense=7.weight} | fold-masks | deploy"
    after, log = absorbed(nn.Sequential(nn.Flatten(), *layers), digits(6)[0], masks)
    assert biases(after) == [True, False, False, True]  # the dense head reads every output, so that its bias stays
    assert ("5.weight", "a layer that reads it is dense, or keeps inputs in chunks") in log.skipped


def test_what_has_no_output_to_spare_keeps_its_bias():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    after, log = absorbed(model, digits(6)[0], "insert-masks | fold-masks | deploy")
    assert biases(after) == [True, True]
    assert log.skipped[0] == ("1.weight", "a layer that reads it is dense, or keeps inputs in chunks")
