"""What forward does beside computing: buffers it changes, random numbers it draws."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import ExportError, TraceError
from sparsify.ir import TraceWarning, trace
from sparsify.ir.effects import beside, changed_buffers, random_draws
from tests.cases import CASES, digits


class Stateful(nn.Module):
    def __init__(self, change) -> None:
        super().__init__()
        self.fc, self.change = nn.Linear(64, 10), change
        self.register_buffer("state", torch.zeros(10))

    def forward(self, x):
        return self.change(self, self.fc(x.flatten(1)))


def counted(model, y):
    model.state.add_(1)
    return y + model.state


def averaged(model, y):
    with torch.no_grad():
        model.state.mul_(0.9).add_(0.1 * y.mean(0))
    return y - model.state


def assigned(model, y):
    model.state = model.state * 0.9 + y.detach().mean(0)
    return y - model.state


def sliced(model, y):
    model.state[:3] += y.detach().amax(0)[:3]
    return y + model.state.sum()


def unread(model, y):
    model.state.add_(1)
    return y


def gated(model, y):
    if model.training:
        model.state.add_(1)
    return y + model.state


@pytest.mark.parametrize("change", [counted, averaged, assigned, sliced], ids=lambda f: f.__name__)
def test_state_that_outputs_read_is_said_at_trace_and_refused_at_export(change, tmp_path):
    model, (x, _) = Stateful(change).eval(), digits(6)
    with pytest.warns(TraceWarning, match="changes the buffers 'state' in eval mode"):
        program = trace(model, (x,))
    assert changed_buffers(program, "eval") == {"state": True}
    assert not model.get_buffer("state").any()  # tracing puts it back
    with pytest.raises(ExportError, match="'state'"):
        sp.export(program, tmp_path / "a.onnx", inputs=[x])
    twin = program.clone()
    first, second = program(x), program(x)
    assert torch.equal(first, twin(x))
    assert not torch.equal(first, second)
    model.get_buffer("state").zero_()
    assert torch.equal(first, model(x))


def test_state_that_no_output_reads_is_exported():
    with pytest.warns(TraceWarning, match="'state'"):
        program = trace(Stateful(unread).eval(), (digits(6)[0],))
    assert changed_buffers(program, "eval") == {"state": False}
    assert changed_buffers(trace(Stateful(gated), (digits(6)[0],)), "eval") == {}


def test_ordinary_models_have_no_effects_in_eval_mode():
    for case in CASES:
        program = trace(case.build(), case.args, check=False)
        assert changed_buffers(program, "eval") == {}
        assert random_draws(program, "eval") == []


class Noisy(nn.Module):
    def __init__(self, draw) -> None:
        super().__init__()
        self.body, self.draw = nn.Linear(64, 10), draw

    def forward(self, x):
        return self.draw(self, self.body(x.flatten(1)))


DRAWS = {
    "randn_like": lambda m, y: y + torch.randn_like(y),
    "dropout": lambda m, y: nn.functional.dropout(y, 0.5, training=True),
    "bernoulli": lambda m, y: y * torch.bernoulli(torch.full_like(y, 0.5)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_in_eval_mode_are_named(name, tmp_path):
    x, _ = digits(6)
    with pytest.warns(TraceWarning, match=f"random numbers in eval mode.*{name}"):
        program = trace(Noisy(DRAWS[name]).eval(), (x,))
    with pytest.raises(ExportError, match=f"draws random numbers.*{name}"):
        sp.export(program, tmp_path / "a.onnx", inputs=[x])


FOREIGN = {
    "Python's random": lambda m, y: y if random.random() < 0.2 else -y,
    "numpy.random": lambda m, y: y * float(np.random.rand()),
    "Python's random module": lambda m, y: y if m.training or random.random() < 0.2 else -y,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_draws_that_torch_does_not_see_are_refused_at_every_seed(name):
    x, _ = digits(4)
    for seed in range(2):
        random.seed(seed), np.random.seed(seed)
        before = random.getstate()
        with pytest.raises(TraceError, match=name), warnings.catch_warnings():
            trace(Noisy(FOREIGN[name]), (x,))
        assert random.getstate() == before


class Leaky(nn.Module):
    """A membrane potential that every call starts anew, in a buffer of another shape."""

    def __init__(self, *, keeps: bool) -> None:
        super().__init__()
        self.a, self.keeps = nn.Linear(64, 10), keeps
        self.register_buffer("potential", torch.zeros(1, 10))

    def forward(self, x):
        start = self.potential.mean(0, keepdim=True) if self.keeps else torch.zeros(1, 10)
        self.potential = 0.9 * start.expand(x.shape[0], 10) + self.a(x.flatten(1))
        return self.potential


def test_a_buffer_of_another_shape_that_nothing_reads_is_dropped(tmp_path):
    model, (x, _) = Leaky(keeps=False).eval(), digits(6)
    program = trace(model, (x,))
    assert model.potential.shape == (1, 10)
    assert torch.equal(program(x[:3]), model(x[:3]))
    sp.export(program, tmp_path / "a.onnx", inputs=[x])
    with pytest.raises(TraceError, match=r"keeps a state between calls, in 'potential'"):
        trace(Leaky(keeps=True).eval(), (x,))


class Heads(nn.Module):
    """Two heads on one body, and a weight of the second that only its own output reads."""

    def __init__(self, rule) -> None:
        super().__init__()
        self.body, self.one, self.two, self.rule = nn.Linear(64, 32), nn.Linear(32, 10), nn.Linear(32, 10), rule

    def forward(self, x):
        return self.rule(self, self.body(x.flatten(1)).relu())


def written_in_parts(m, h):
    y = h.new_zeros(h.shape[0], 10)
    y[:, :5] = m.one(h)[:, :5]
    y[:, 5:] += m.two(h)[:, 5:]
    return y, m.two(h)


HEADS = {
    "second_head": (lambda m, h: {"logits": m.one(h), "other": m.two(h)}, {"two.weight", "two.bias"}),
    "features": (lambda m, h: {"logits": h, "scores": m.one(h)}, {"one.weight", "one.bias"}),
    "shared": (lambda m, h: {"logits": m.one(h) + m.two(h), "other": m.two(h)}, set()),
    "in_place": (lambda m, h: dict(zip(("logits", "other"), written_in_parts(m, h), strict=True)), set()),
    "in_training": (
        lambda m, h: {"logits": m.one(h)} | ({"aux": m.two(h)} if m.training else {}),
        {"two.weight", "two.bias"},
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_weights_that_only_other_outputs_read_are_named(name):
    rule, expected = HEADS[name]
    model, (x, _) = Heads(rule).train(), digits(6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        program = trace(model, (x,))
    assert set(beside(program, "train")) == expected
    texts = [str(w.message) for w in caught if "the logits do not depend on" in str(w.message)]
    assert len(texts) == bool(expected)
    assert all(repr(weight) in texts[0] for weight in expected)
    model(x)["logits"].sum().backward()
    assert {
        n for n, p in model.named_parameters() if p.grad is None and not (name == "features" and n[:3] == "two")
    } == expected


def test_frozen_weights_beside_the_logits_are_not_named():
    model = Heads(HEADS["second_head"][0])
    model.two.requires_grad_(False)
    assert beside(trace(model, (digits(6)[0],)), "train") == {}
