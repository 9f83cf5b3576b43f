"""Runs that leave no trace: every buffer has its value, its shape and its memory again. Models that torch cannot train are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsify.errors import TraceError
from sparsify.ir import trace
from sparsify.ir.agreement import untouched
from tests.cases import digits


class Writing(nn.Module):
    """Writes its buffers; one of them is a row that stands for four, as masks of groups do, one is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.row = torch.arange(3.0)
        self.register_buffer("groups", self.row.expand(4, 3))
        self.register_buffer("unknown", torch.tensor([torch.nan, 1.0]))
        self.register_buffer("grown", torch.zeros(2))
        self.register_buffer("scalar", torch.tensor(1.0))

    def forward(self) -> None:
        self.row.add_(1)
        self.unknown.fill_(2)
        self.grown.resize_(5)
        self.scalar = torch.tensor(3.0)


@pytest.mark.parametrize("writes", [True, False])
def test_buffers_are_put_back_whatever_memory_they_share(writes):
    model = Writing()
    groups, before = model.groups, {name: value.clone() for name, value in model.named_buffers()}
    with untouched(model):
        if writes:
            model()
    assert model.groups is groups and groups.stride() == (0, 1) and groups.data_ptr() == model.row.data_ptr()
    for name, value in model.named_buffers():
        assert torch.equal(value.nan_to_num(-1), before[name].nan_to_num(-1)) and value.shape == before[name].shape


class InPlace(nn.Module):
    def __init__(self, rule) -> None:
        super().__init__()
        self.first, self.second, self.rule = nn.Linear(64, 10), nn.Linear(10, 10), rule

    def forward(self, x):
        return self.rule(self, self.first(x.flatten(1)))


def relu_after_a_product(m, h):
    y = h * h
    h.relu_()
    return m.second(y)


def residual_after_tanh(m, h):
    h, before = h.tanh(), h
    h += before
    return m.second(h)


def logits_used_twice(m, h):
    y = m.second(h.relu_())
    h.mul_(2)
    return y + h


def softmax_clipped(m, h):
    return m.second(torch.softmax(h, 1).clamp_(min=0.1))


@pytest.mark.parametrize(
    ("rule", "operation"),
    [
        (relu_after_a_product, "relu_"),
        (residual_after_tanh, "add_"),
        (logits_used_twice, "mul_"),
        (softmax_clipped, "clamp_"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_value_overwritten_before_its_backward_pass(rule, operation):
    x, _ = digits(6)
    model = InPlace(rule)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        model(x).sum().backward()
    with pytest.raises(
        TraceError, match=rf"InPlace cannot be trained.*changed in place \(.*aten\.{operation}.*Make a new"
    ):
        trace(model, (x,))


def test_operations_in_place_that_train_are_traced():
    x, _ = digits(6)
    model = InPlace(lambda m, h: m.second(h.relu_()).mul_(3))
    program = trace(model, (x,)).train()
    torch.testing.assert_close(program(x), model(x))
