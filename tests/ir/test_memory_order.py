"""Compact linear layers may leave their outputs transposed in memory only where no operator can notice."""

import pytest
import torch
from torch import nn

from sparsify.ir import trace
from sparsify.ir.compact import compact_linear
from sparsify.passes import Pipeline


class Chain(nn.Module):
    """Two linear layers of 16 with something between them, and something after them."""

    def __init__(self, between, after):
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.between, self.after = between, after

    def forward(self, x):
        return self.after(self, self.second(self.between(self, self.first(x))))


def unchanged(model, value):
    del model
    return value


@pytest.mark.parametrize(
    ("between", "after", "free"),
    [
        (lambda _, v: torch.relu(v), unchanged, [True, False]),
        (lambda _, v: torch.tanh(v) + v, unchanged, [True, False]),
        (lambda m, v: nn.functional.dropout(torch.tanh(v), 0.5, m.training), unchanged, [False, False]),
        (lambda _, v: torch.relu(v).view(-1, 16), unchanged, [False, False]),
        (lambda _, v: v.view(-1, 4, 4).transpose(1, 2).reshape(-1, 16), lambda _, v: v.view(-1), [False, False]),
        (lambda _, v: nn.functional.layer_norm(v, (16,)), unchanged, [False, False]),
        (lambda m, v: v @ m.first.weight, unchanged, [False, False]),
        (unchanged, lambda _, v: (v, v.sum()), [True, False]),
        (unchanged, lambda m, v: nn.functional.linear(v, m.first.bias[None]), [True, True]),
    ],
)  # fmt: skip
def test_outputs_are_transposed_only_where_nothing_asks_for_their_order(between, after, free):
    torch.manual_seed(0)
    x = torch.rand(6, 16, dtype=torch.float64)
    masked = trace(Chain(between, after).double(), (x[:2],)).train()
    Pipeline.parse("insert-masks{pattern=grouped:8 density=0.5 allocation=uniform} | insert-gradient-taps").apply(
        masked
    )
    with torch.no_grad():
        for name, mask in masked.masks().items():
            masked.get_parameter(name).mul_(mask)
    compact = Pipeline.parse("compact-grouped")(masked).train()
    layers = [node for node in compact.phases["train"].graph.nodes if node.target is compact_linear]
    assert [len(node.args) > 5 and node.args[5] is True for node in layers] == free[: len(layers)]
    outputs = [torch.manual_seed(1) and program(x) for program in (masked, compact)]
    first = [output[0] if isinstance(output, tuple) else output for output in outputs]
    torch.testing.assert_close(first[1], first[0])
    assert first[1].is_contiguous()
    for output in first:
        output.view(-1).square().sum().backward()
    torch.testing.assert_close(compact.get_parameter("second.bias").grad, masked.get_parameter("second.bias").grad)
    torch.testing.assert_close(compact.get_parameter("first.bias").grad, masked.get_parameter("first.bias").grad)


def test_samples_in_any_order_and_groups_that_share_an_order():
    torch.manual_seed(0)
    x = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((8, 3), (8,)))
    inputs, places = torch.tensor([[0, 4, 7], [1, 4, 11]]), torch.randperm(8)
    for given in ((None, None), (bias, None), (None, places), (bias, places)):
        made, want = (compact_linear(x, weight, inputs, *given, any_order=choice) for choice in (True, False))
        torch.testing.assert_close(made, want)
        assert made.t().is_contiguous() and want.is_contiguous()
        held = [value for value in (x, weight, given[0]) if value is not None]
        factor = torch.randn_like(made)
        found = [torch.autograd.grad((value * factor).sum(), held, retain_graph=True) for value in (made, want)]
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b)
