"""SRigL in training: constant fan-in at every step, ablated outputs, the last weight spared."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import RecipeError
from tests.cases import digits, mlp


def trained(**options):
    torch.manual_seed(1)
    x, y = digits(256)
    program = sp.trace(mlp(), (x[:2],)).train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1, momentum=0.9)
    method = sp.methods.srigl(density=0.1, update_every=4, drop_fraction=0.5, **options)
    trainer = sp.attach(method, program, optimizer, total_steps=60)
    active = program.costs().active
    for _ in range(60):
        nn.functional.cross_entropy(program(x), y).backward()
        trainer.step()
        optimizer.zero_grad()
        assert program.costs().active == active
        for mask in program.masks().values():
            counts = mask.sum(dim=1)
            assert len(set(counts[counts > 0].tolist())) == 1
    return {name: int((mask.sum(dim=1) == 0).sum()) for name, mask in program.masks().items()}


def test_outputs_are_ablated_but_those_of_the_last_weight():
    ablated = trained(least_salient=0.95)
    assert ablated["1.weight"] > 0 and ablated["5.weight"] == 0


def test_without_ablation_every_output_keeps_its_inputs():
    assert set(trained(ablation=False, least_salient=0.95).values()) == {0}


def test_another_pattern_is_refused():
    with pytest.raises(RecipeError, match="srigl trains pattern fan-in, found 'unstructured'"):
        sp.methods.srigl(density=0.1, pattern="unstructured")
