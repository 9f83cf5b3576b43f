"""Runs that leave no trace: every buffer has its value, its shape and its memory again. Models that torch cannot train are refused, and
sizes at which the trace fails and the model does not are told apart from those that the model itself refuses."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from sparsify.errors import TraceError
from sparsify.ir import TraceWarning, trace
from sparsify.ir.agreement import untouched
from sparsify.ir.size_ranges import EVERY, SizeRange
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


class Lengths(nn.Module):
    """A linear layer at every step; torch.export sees ``captured`` of its output [N, T, 2], everybody else ``eager``."""

    def __init__(self, captured=lambda y: y, eager=lambda y: y) -> None:
        super().__init__()
        self.fc, self.captured, self.eager = nn.Linear(4, 2), captured, eager

    def forward(self, x):
        y = self.fc(x)
        return self.captured(y) if torch.compiler.is_exporting() else self.eager(y)


def from_two(y):
    """What fails at a length of 1, without a guard: torch.export does not know the values of an index."""
    rows = torch.full((y.shape[1],), y.shape[1] - 2).clamp(max=0)
    return y + 0 * functional.embedding(rows, torch.zeros(9, 2))


def up_to_nine(y):
    return y + 0 * functional.embedding(torch.arange(y.shape[1]), torch.zeros(9, 2))


def refuses_one(y):
    if y.shape[1] == 1:
        raise ValueError("one step is no sequence.")
    return y


def traced(model, length=6):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        program = trace(model, torch.rand(3, length, 4), dynamic={"x": {1: "T"}})
    return program, [str(w.message) for w in caught if w.category is TraceWarning]


def test_a_fault_of_the_trace_below_is_warned_of():
    program, (said,) = traced(Lengths(captured=from_two))
    assert {program.ranges[phase]["T"] for phase in ("train", "eval")} == {SizeRange(2)}
    assert (
        "holds for 2 <= T in eval mode: the model works at T = 1, and its trace fails (IndexError: index out of" in said
    )


def test_a_size_that_the_model_refuses_is_its_own_doing():
    program, (said,) = traced(Lengths(eager=refuses_one))
    assert program.ranges["eval"]["T"] == SizeRange(2)
    assert (
        "holds for 2 <= T in eval mode: the model itself fails at T = 1 (ValueError: one step is no sequence)." in said
    )
    with pytest.raises(TraceError, match="found T = 1"):
        program(torch.rand(3, 1, 4))


def test_the_last_size_of_a_model_is_told_with_its_error():
    program, said = traced(Lengths(up_to_nine, up_to_nine), 6)
    assert program.ranges["eval"]["T"] == SizeRange(1, 9)
    assert any(
        "1 <= T <= 9 in eval mode: the model itself fails at T = 10 (IndexError: index out" in text for text in said
    )


def test_a_fault_of_the_trace_above_is_refused():
    with pytest.raises(
        TraceError, match=r"trace of the model fails at .*T = 13 in eval mode, where the model itself works: IndexError"
    ):
        traced(Lengths(captured=up_to_nine))


def test_a_model_that_fails_at_another_batch_is_told_from_its_trace():
    class Six(nn.Linear):
        def forward(self, x):
            if not torch.compiler.is_exporting() and len(x) != 6:
                raise RuntimeError("six rows")
            return super().forward(x)

    with pytest.raises(
        TraceError, match=r"the model fails at batch 7 in train mode, though not at the size .*six rows"
    ):
        trace(Six(4, 2), torch.rand(6, 4))


def test_without_a_fault_nothing_is_said():
    program, said = traced(Lengths())
    assert program.ranges["eval"]["T"] == EVERY and not said
