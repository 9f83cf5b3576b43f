"""In-place operators become functional where nobody sees the difference, and stay where somebody does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsify.ir import trace
from sparsify.passes.in_place import make_functional


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.second, self.function = nn.Linear(8, 8), nn.Linear(8, 8), function

    def forward(self, x):
        return self.second(self.function(self.first(x), x))


def names(program):
    return {getattr(node.target, "_opname", "") for node in program.phases["eval"].graph.nodes}


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda y, x: y.relu_(), set()),
        (lambda y, x: torch.nn.functional.hardtanh_(torch.nn.functional.leaky_relu_(y, 0.1)), set()),
        (lambda y, x: (y * 1).add_(x).mul_(2.0).clamp_(max=1.0), set()),
        (lambda y, x: [y.sigmoid_(), y + x][1], set()),  # read again after it was changed
        (lambda y, x: [y + x, y.exp_()][1] * 2, set()),
        (lambda y, x: [y[:, :4].tanh_(), y][1], {"tanh_"}),  # changes a part of a value that is read
        (lambda y, x: [x.detach().clone().view(-1, 4).neg_(), y][1], {"neg_"}),
    ],
)
def test_what_is_changed_in_place_is_read_as_changed(function, left):
    torch.manual_seed(0)
    model, x = Net(function).eval(), torch.randn(5, 8)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    program = trace(model, (x,)).eval()
    want = model(x)
    make_functional(program, "eval")
    assert {name for name in names(program) if name.endswith("_")} <= left
    program.phases["eval"].recompile()
    assert torch.equal(program(x), want)
