"""A layer's weight, bias and numbers, whatever spelling the graph has."""

from __future__ import annotations

import torch
from torch import nn

from sparsify.ir import surgery, trace
from sparsify.ir.layers import add_bias, layers, resize, take_outputs
from sparsify.ir.traits import argument

aten = torch.ops.aten


class Spelled(nn.Module):
    def __init__(self):
        super().__init__()
        self.same = nn.Conv2d(2, 4, (3, 5), padding="same", dilation=(2, 1))
        self.valid = nn.Conv1d(4, 6, 3, padding="valid", stride=2, bias=False)
        self.weight = nn.Parameter(torch.randn(8, 3, 1))

    def forward(self, x):
        x = self.valid(self.same(x).flatten(2))
        return aten.convolution.default(x, self.weight, None, [1], [2], [1], False, [0], 2)


def program():
    return trace(Spelled(), (torch.randn(2, 2, 4, 3),))


def test_numbers_by_hand():
    same, valid, bare = layers(program())
    assert (same.pads, same.spatial("stride"), same.kernel, same.axis, same.groups) == (
        (2, 2, 2, 2),
        (1, 1),
        (3, 5),
        1,
        1,
    )
    assert (valid.pads, valid.spatial("stride"), valid.bias) == ((0, 0), (2,), None)
    assert (bare.pads, bare.groups, bare.kernel, bare.is_conv) == ((2, 2), 2, (1,), True)
    assert str(same.weight.target) == "same.weight" and same.bias is not None and same.bias.target == "same.bias"


def test_outputs_taken_and_a_bias_added():
    found = program()
    same, valid, _ = layers(found)
    before = [found.get_parameter(name).detach().clone() for name in ("same.weight", "same.bias")]
    take_outputs(found, same, torch.tensor([3, 0, 2, 1]))
    assert torch.equal(found.get_parameter("same.weight"), before[0][[3, 0, 2, 1]])
    assert torch.equal(found.get_parameter("same.bias"), before[1][[3, 0, 2, 1]])
    add_bias(found, "eval", valid.node, torch.arange(6.0))
    assert argument(valid.node, "bias").target == "valid.bias" and argument(valid.node, "stride") == [2]


def test_an_argument_is_set_where_it_stands():
    found = program()
    _, valid, bare = layers(found)
    surgery.set_argument(valid.node, "groups", 2)
    assert valid.node.args[2:] == (None, [2], "valid", [1], 2)
    surgery.set_arguments(bare.node, bare.node.args[:2], dict(zip(
        ("bias", "stride", "padding", "dilation", "transposed", "output_padding", "groups"), bare.node.args[2:], strict=True,
    )))  # fmt: skip
    surgery.set_argument(bare.node, "groups", 1)
    assert len(bare.node.args) == 2 and bare.node.kwargs["groups"] == 1


def test_state_of_another_shape_is_seen_by_its_readers():
    found = program()
    resize(found, "same.bias", torch.zeros(9))
    (node,) = (n for n in found.phases["eval"].graph.nodes if n.op == "get_attr" and n.target == "same.bias")
    assert node.meta["spec"].shape == (9,) and isinstance(found.get_parameter("same.bias"), nn.Parameter)
