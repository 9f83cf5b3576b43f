"""Spiking networks in the user's own code: traced, trained sparsely, saved and exported."""

from __future__ import annotations

import pytest
import torch
from snntorch import surrogate
from torch import nn

import sparsify as sp
from sparsify.errors import TraceError
from tests.cases import digits
from tests.spiking import Leaky, Loop, Nodes

MODELS = {
    "loop": Loop,
    "loop of 8 steps": lambda: Loop(steps=8),
    "snntorch": Leaky,
    "snntorch, learnable": lambda: Leaky(learn_beta=True, learn_threshold=True),
    "snntorch, zero": lambda: Leaky(reset_mechanism="zero", spike_grad=surrogate.fast_sigmoid()),
    "node": Nodes,
    "node, subtracting": lambda: Nodes(v_reset=None, decay_input=False, detach_reset=True, tau=4 / 3),
}
CHEAP = ["loop of 8 steps", "snntorch, learnable", "node"]


def built(name):
    torch.manual_seed(0)
    return MODELS[name]().train()


def gradients(call, x, parameters):
    out = call(x)
    weight = torch.linspace(-1, 1, out.numel()).view_as(out)
    return out, torch.autograd.grad(out, parameters, weight)


@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_are_the_models_to_the_bit(name):
    model, (x, _) = built(name), digits(24)
    parameters = list(model.parameters())
    program = sp.trace(model, (x[:5],)).train()
    assert program.dynamic_batch
    want, want_grads = gradients(model, x, parameters)
    have, have_grads = gradients(program, x, parameters)
    assert torch.equal(have, want) and want.unique().numel() > 10
    for (key, _), a, b in zip(model.named_parameters(), have_grads, want_grads, strict=True):
        assert torch.equal(a, b) and b.any(), key


@pytest.mark.parametrize("name", CHEAP)
def test_rounds_a_file_and_an_export(name, tmp_path):
    model, (x, y) = built(name), digits(320)
    program = sp.trace(model, (x[:5],)).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.05)
    trainer = sp.attach(sp.methods.rigl(density=0.3, update_every=3, stop_at=10), program, optimizer, total_steps=20)
    before = {key: value.clone() for key, value in program.named_buffers() if key.endswith("_mask")}
    losses = []
    for step in range(20):
        rows = slice(16 * step, 16 * step + 16)
        loss = nn.functional.cross_entropy(program(x[rows]), y[rows])
        loss.backward()
        trainer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    trainer.finish()
    assert trainer.counts["rounds"] == 3 and sum(losses[-4:]) < sum(losses[:4])
    masks = {key: value for key, value in program.named_buffers() if key.endswith("_mask")}
    assert any(not torch.equal(value, before[key]) for key, value in masks.items())
    for key, mask in masks.items():
        assert not program.get_parameter(key.removesuffix("_mask"))[~mask].any()

    program.save(tmp_path / "model.sparsify")
    again = sp.Program.load(tmp_path / "model.sparsify").train()
    names = [key for key, _ in program.named_parameters()]
    first = gradients(program, x[:9], list(program.parameters()))
    second = gradients(again, x[:9], [again.get_parameter(key) for key in names])
    assert torch.equal(first[0], second[0]) and all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))

    exported = sp.export(program.eval(), tmp_path / "model.onnx", inputs=[x[:64]])
    assert exported.path.stat().st_size > 0


def test_a_state_that_is_kept_between_calls_is_refused():
    x, _ = digits(6)
    with pytest.raises(
        TraceError, match=r"Nodes keeps a state between calls, in 'layers\.2\.v', 'layers\.4\.v'.*fresh"
    ):
        sp.trace(Nodes(fresh=False), (x,))
