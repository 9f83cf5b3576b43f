"""Regions inside forward: no_grad and autocast(enabled=False) are inlined with their meaning, conditions are refused by name."""

from __future__ import annotations

import copy

import onnxruntime
import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import TraceError
from sparsify.ir import Program, trace
from tests.cases import digits


class Region(nn.Module):
    """Two layers, the second after whatever ``inside`` does with the first's output."""

    def __init__(self, inside) -> None:
        super().__init__()
        self.first, self.second, self.inside = nn.Linear(64, 16), nn.Linear(16, 10), inside

    def forward(self, x):
        h = self.first(x.flatten(1))
        return self.second(self.inside(self, h))


def scaled(model, h):
    with torch.no_grad():
        scale = h.norm(dim=1, keepdim=True) + model.first.weight.norm()
    return h / scale


def nested(model, h):
    with torch.no_grad():
        low = h.amin(1, keepdim=True)
        with torch.no_grad():
            high = low + h.amax(1, keepdim=True).exp()
    return (h - low) / high


def exact(model, h):
    with torch.autocast("cpu", enabled=False):
        return model.second.weight.new_ones(1) * torch.tanh(h.float() @ model.first.weight[:, :16].float())


def both(model, h):
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        angle = (h.float() @ torch.eye(16)).cos()
    return h * angle


def enabled(model, h):
    with torch.no_grad():
        g = h * 2
        with torch.enable_grad():
            k = model.first.weight.sum() + g
    return k


def written(model, h):
    with torch.no_grad():
        h = h.clone()
        k = h.mul_(2).float()
    return k + model.first.bias


@pytest.mark.parametrize("inside", [scaled, nested, exact, both, enabled, written], ids=lambda f: f.__name__)
def test_outputs_and_gradients_equal_the_models(inside, tmp_path):
    torch.manual_seed(0)
    model, (x, _) = Region(inside), digits(9)
    program = trace(model, (x[:5],)).train()
    program.save(tmp_path / "a.sparsify")
    loaded = Program.load(tmp_path / "a.sparsify").train()
    weights = list(model.parameters())
    want = model.train()(x)
    want_grads = torch.autograd.grad(want.square().sum(), weights, allow_unused=True)
    for other in (program, loaded, program.clone()):
        have = other(x)
        torch.testing.assert_close(have, want)
        grads = torch.autograd.grad(have.square().sum(), list(other.parameters()), allow_unused=True)
        for mine, theirs in zip(grads, want_grads, strict=True):
            assert (mine is None) == (theirs is None)
            if theirs is not None:
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    sp.export(program.eval(), tmp_path / "a.onnx", inputs=[x])
    there = onnxruntime.InferenceSession(tmp_path / "a.onnx").run(None, {program.input_specs[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.tensor(there), model.eval()(x), rtol=1e-4, atol=1e-5)


def test_a_region_without_autocast_stays_exact_under_autocast(tmp_path):
    """A rotary angle of position 1000 is lost in bfloat16; the region keeps it in float32 when training runs in bfloat16."""
    model, (x, _) = Region(exact).eval(), digits(8)
    program = trace(model, (x,))
    program.save(tmp_path / "a.sparsify")
    loaded = Program.load(tmp_path / "a.sparsify")
    with torch.autocast("cpu", torch.bfloat16):
        want = model(x)
        assert torch.equal(program(x), want)
        assert torch.equal(loaded(x), want)


def test_spectral_norm_moves_its_vectors_as_the_model_does():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(64, 10)))
    other, (x, _) = copy.deepcopy(model), digits(6)
    program = trace(other, (x,)).train()
    for _ in range(3):
        assert torch.equal(program(x), model(x))
    for name, value in model.named_buffers():
        assert torch.equal(program.get_buffer(name), value)


def condition(model, h):
    return torch.cond(h.sum() > 0, lambda v: v.sin(), lambda v: v.cos(), (h,))


def lowered(model, h):
    with torch.autocast("cpu", torch.bfloat16):
        return (h @ model.second.weight.T @ model.second.weight).float()


@pytest.mark.parametrize(
    ("inside", "words"),
    [(condition, r"torch\.cond at test_flattening\.py:\d+"), (lowered, r"bfloat16 under torch\.autocast")],
    ids=["cond", "autocast"],
)
def test_what_a_flat_graph_cannot_hold_is_refused_by_name(inside, words):
    with pytest.raises(TraceError, match=words):
        trace(Region(inside), (digits(6)[0],))
