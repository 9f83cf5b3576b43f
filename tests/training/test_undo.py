"""An attach that fails at any place leaves everything as it was, and can be tried again."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import SparsifyError
from sparsify.ir import PHASES, Stage, surgery
from sparsify.methods import Correction
from sparsify.parts.allocation import uniform
from sparsify.passes import CHANGED, Effect, Pass, PassLog
from tests.training.loops import TRACED, loss, rigl, run, strays


class Stop(Exception):
    """What a part of the user's raises."""


@dataclass(frozen=True)
class Spoils(Pass):
    """Writes everywhere a pass can write, and fails."""

    name: ClassVar = "spoils"
    requires: ClassVar = (Stage.TRACED, Stage.MASKED)
    effects: ClassVar = Effect.GRAPH | Effect.NAMES | Effect.WEIGHTS

    @property
    def preserves(self):
        return dict.fromkeys(PHASES, CHANGED)

    def run(self, program) -> PassLog:
        weight = program.weight("1.weight")
        with torch.no_grad():
            weight.add_(torch.randn_like(weight))
        program.weight("3.weight").data = torch.zeros(2, 2)
        program.weight("5.bias").requires_grad_(False)
        program.weight("5.weight").grad = None
        surgery.add_state(program, "1.more", nn.Parameter(torch.ones(3)))
        surgery.remove_state(program, "3.bias")
        program.sizes["N"], program.unfinished = 77, "spoiled"
        program.phases["eval"].graph.erase_node(list(program.phases["eval"].graph.nodes)[-1])
        raise Stop


def allocation(layers, density):
    raise Stop


def more_than_fits(layers, density):
    return {name: 10 * budget for name, budget in uniform(layers, density).items()}


def fails(*args):
    raise Stop


def corrected(density=0.2):
    """Fails where the correction begins, when the program is rewritten."""
    return dataclasses.replace(rigl(density=density), correction=lambda total: Correction(init=fails, correct=fails))


class Unwatched(torch.optim.SGD):
    """Cannot be watched: fails at the very end of an attach."""

    def register_step_pre_hook(self, hook):
        raise Stop


class Fixed(torch.optim.SGD):
    """Takes no parameters of a pass: its groups hold tuples."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        for group in self.param_groups:
            group["params"] = tuple(group["params"])


def sgd(parameters, kind=torch.optim.SGD):
    return kind(list(parameters), lr=0.1, momentum=0.9)


def one(program):
    return [sgd(program.parameters())]


def second_unwatched(program):
    first, *rest = program.parameters()
    return [sgd([first]), sgd(rest, Unwatched)]


def fixed(program):
    return [sgd(program.parameters(), Fixed)]


PLACES = {
    "an allocation raises": (lambda: rigl(allocation=allocation), one),
    "an allocation is too large": (lambda: rigl(allocation=more_than_fits), one),
    "the last pass": (lambda: dataclasses.replace(sp.methods.widened(rigl()), passes=(Spoils(),)), one),
    "a pass without masks": (lambda: dataclasses.replace(sp.methods.dense(), passes=(Spoils(),)), one),
    "a pattern does not fit": (lambda: rigl(pattern="block:7x7"), one),
    "no round": (lambda: rigl(update_every=100), one),
    "a correction cannot begin": (corrected, one),
    "groups that cannot grow": (lambda: sp.methods.widened(rigl()), fixed),
    "the second optimizer cannot be watched": (rigl, second_unwatched),
}


def picture(program, optimizers):
    """Everything that an attach could change, as values and identities."""
    tensors = {**dict(program.named_parameters()), **dict(program.named_buffers())}
    return {
        "text": program.text(),
        "names": {name: id(tensor) for name, tensor in tensors.items()},
        "values": {name: (tensor.data_ptr(), tensor.tolist()) for name, tensor in tensors.items()},
        "gradients": {name: (id(t.grad), t.grad.tolist()) for name, t in tensors.items() if t.grad is not None},
        "hooks": {name: [*(tensor._backward_hooks or ())] for name, tensor in tensors.items()},
        "trains": {name: tensor.requires_grad for name, tensor in tensors.items()},
        "attributes": (program.training, program.unfinished, dict(program.sizes), len(program._forward_hooks)),
        "random": torch.random.get_rng_state().tolist(),
        "optimizers": [
            (
                [(id(g), {k: list(map(id, v)) if k == "params" else v for k, v in g.items()}) for g in o.param_groups],
                {id(p): {k: v.tolist() for k, v in entry.items()} for p, entry in o.state.items()},
                list(o._optimizer_step_pre_hooks),
            )
            for o in optimizers
        ],
    }


@pytest.mark.parametrize("place", PLACES)
def test_an_attach_that_fails_changes_nothing_and_a_retry_works(place):
    make, optimizers_of = PLACES[place]
    program = TRACED.clone().train()
    program.unfinished = "not yet"
    program.register_forward_hook(lambda *_: None)
    optimizers = optimizers_of(program)
    loss(program).backward()
    for optimizer in optimizers:
        optimizer.step()
    before = picture(program, optimizers)
    with pytest.raises((Stop, SparsifyError, ValueError, AttributeError)):
        sp.attach(make(), program, optimizers, total_steps=12)
    assert picture(program, optimizers) == before
    program.zero_grad()
    reference = TRACED.clone().train()
    reference.load_state_dict(program.state_dict())
    losses = [loss(p) for p in (program, reference)]
    for value in losses:
        value.backward()
    assert torch.equal(*losses)
    for optimizer in optimizers:
        optimizer.step()  # no trainer watches it
        optimizer.zero_grad()
    if place.startswith("the second"):
        return
    trainer = sp.attach(rigl(), program, optimizers, total_steps=12)
    run(program, trainer.optimizer, trainer, 12)
    assert trainer.counts["rounds"] == 2 and strays(program) == 0
