"""Orders of channels, worked by hand: who writes and reads them, and what keeps an order from being free."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsify.ir import trace
from sparsify.ir.channels import channel_sets, written_together
from sparsify.passes import Pipeline
from tests.cases import case


def sets(model, shape=(1, 8, 8)):
    program = trace(model.eval(), (torch.linspace(0, 1, 2 * torch.Size(shape).numel()).reshape(2, *shape),))
    return {channels.writers[0]: channels for channels in channel_sets(program)}


def traced(name):
    return case(name).trace()


def test_a_chain_and_its_batch_norm():
    found = {c.writers[0]: c for c in channel_sets(traced("conv_bn"))}
    conv, fc = found["conv.weight"], found["fc.weight"]
    assert conv.readers == [("fc.weight", 16)] and conv.pinned is None  # 8 channels of 4 x 4, flattened
    assert conv.vectors == ["bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"]
    assert (fc.readers, fc.vectors, fc.pinned) == ([], ["fc.bias"], "it is an output")


def test_what_is_added_has_one_order():
    first, *_ = channel_sets(traced("residual"))
    assert first.writers == ["stem.weight", "conv2.weight"] and first.pinned is None
    assert sorted(first.readers) == [("conv1.weight", 1), ("head.weight", 1)]
    assert sorted(first.vectors) == ["conv2.bias", "stem.bias"]


def test_a_depthwise_convolution_rides_along_and_a_grouped_one_does_not():
    found = {c.writers[0]: c for c in channel_sets(traced("grouped"))}
    assert "grouped reads" not in str(found["pointwise.weight"].pinned)
    assert found["stem.weight"].pinned == "%conv2d_1 reads it"
    separable = {c.writers[0]: c for c in channel_sets(traced("depthwise"))}["stem.weight"]
    assert "depthwise.weight" in separable.vectors and separable.readers == [("pointwise.weight", 1)]


def test_masks_do_not_hide_a_weight():
    program = Pipeline.parse("insert-masks | insert-gradient-taps | lower-masks")(traced("residual"))
    assert channel_sets(program)[0].writers == ["stem.weight", "conv2.weight"]
    assert [c.writers for c in channel_sets(program, "train")] == [c.writers for c in channel_sets(program)]


class Ends(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.a, self.b, self.end = nn.Linear(8, 8), nn.Linear(8, 8), end
        self.scale = nn.Parameter(torch.linspace(1, 2, 8))
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        return self.end(self, torch.relu(self.a(x.squeeze(1))))


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (lambda m, y: m.b(torch.nn.functional.gelu(y)).mean(1), None),
        (lambda m, y: m.b(m.norm(y)).mean(1), None),
        (lambda m, y: m.b(y * 2 + 1).mean(1), None),
        (lambda m, y: m.b(y * m.scale).mean(1), "%mul reads it"),
        (lambda m, y: m.b(y.softmax(-1)).mean(1), "%softmax reads it"),
        (lambda m, y: m.b(torch.cat([y, y], 1)).mean(1), "%cat reads it"),
        (lambda m, y: m.b(y.transpose(1, 2)).mean(1), "%linear_1 reads it"),
        (lambda m, y: m.b(y + y.sum(-1, keepdim=True)).mean(1), "%sum_1 reads it"),
        (lambda m, y: y.mean(1), "it is an output"),
        (lambda m, y: m.b(y.mean(2)), "%mean reads it"),
    ],
)
def test_what_keeps_an_order(end, reason):
    assert sets(Ends(end))["a.weight"].pinned == reason


def test_weights_read_twice_keep_the_order_of_both_sides():
    found = [(c.writers, c.pinned) for c in channel_sets(traced("shared"))]
    assert all(pinned for _, pinned in found)
    tied = {c.writers[0]: c.pinned for c in channel_sets(traced("tied"))}
    assert tied["first.weight"] == "another layer has the same weight"


def test_weights_by_the_order_of_their_outputs():
    program = traced("residual")
    names = ["stem.weight", "conv1.weight", "conv2.weight", "head.weight"]
    want = [("stem.weight", "conv2.weight"), ("conv1.weight",), ("head.weight",)]
    assert written_together(program, names) == want
    assert written_together(program, names[1:]) == [("conv1.weight",), ("conv2.weight",), ("head.weight",)]
