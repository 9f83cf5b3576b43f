"""Parameters that a pass adds join the group they belong to."""

from __future__ import annotations

import functools

import torch
from torch import nn

import sparsify as sp
from sparsify.training.groups import adopt
from tests.cases import digits


def program_with_two_heads():
    """A copy of a program that is traced once."""
    return two_heads().clone().train()


@functools.cache
def two_heads():
    model = nn.ModuleDict({"head": nn.Linear(64, 8), "other": nn.Linear(8, 10)})

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.m = model

        def forward(self, x):
            return self.m["other"](torch.relu(self.m["head"](x.flatten(1))))

    return sp.trace(Net(), (digits()[0],))


def test_a_new_row_joins_its_layer_and_a_new_bias_the_biases():
    program = program_with_two_heads()
    names = dict(program.named_parameters())
    groups = [
        {"params": [names["m.head.weight"]], "lr": 0.1},
        {"params": [names["m.other.weight"]], "lr": 0.2},
        {"params": [names["m.head.bias"], names["m.other.bias"]], "lr": 0.3},
    ]
    optimizer = torch.optim.SGD(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    sp.Pipeline.parse("widen-classifier").apply(program)
    assert adopt(program, optimizer) == ["m.other.unknown_logit.weight", "m.other.unknown_logit.bias"]
    assert adopt(program, optimizer) == [], "once"
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(program.weight("m.other.unknown_logit.weight"))] == 0.2
    assert rates[id(program.weight("m.other.unknown_logit.bias"))] == 0.3
    program(digits()[0])[:, 10].sum().backward()
    before = program.weight("m.other.unknown_logit.bias").detach().clone()
    optimizer.step()
    schedule.step()
    assert torch.allclose(program.weight("m.other.unknown_logit.bias"), before - 0.3 * 16)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.1, 0.15]


def test_frozen_parameters_stay_outside():
    program = program_with_two_heads()
    frozen = program.weight("m.head.weight").requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in program.parameters() if p.requires_grad], lr=0.1)
    assert adopt(program, optimizer) == []
    assert all(p is not frozen for p in optimizer.param_groups[0]["params"])
