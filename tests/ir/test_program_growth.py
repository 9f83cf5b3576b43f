"""What a program costs beside its tensors grows no faster than its layers: counted in Python calls, which no other load disturbs."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.ir import Program, trace

FEW, MANY = 16, 64
LINEAR = 1.15 * MANY / FEW
"""A quadratic part would make 64 layers cost up to 16 times what 16 cost, a linear one 4 times."""


@functools.cache
def _traced(layers: int) -> Program:
    blocks = [module for _ in range(layers) for module in (nn.Linear(4, 4), nn.ReLU())]
    return trace(nn.Sequential(*blocks), (torch.randn(2, 4),))


def _attached(layers: int) -> tuple[Program, sp.SparseTrainer]:
    program = _traced(layers).clone().train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    return program, sp.attach(sp.methods.rigl(density=0.5, update_every=1), program, optimizer, total_steps=10)


def _calls(work: Callable[[], object]) -> int:
    """Python functions and built-in functions called by ``work``."""
    count = 0

    def profile(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def _round(layers: int) -> int:
    program, trainer = _attached(layers)
    program(torch.randn(2, 4)).square().sum().backward()
    found = _calls(trainer.step)
    assert trainer.counts["rounds"] == 1
    return found


WORK: dict[str, Callable[[int], int]] = {
    "verify": lambda layers: _calls(_attached(layers)[0].verify),
    "text": lambda layers: _calls(_attached(layers)[0].text),
    "costs": lambda layers: _calls(_attached(layers)[0].costs),
    "attach": lambda layers: _calls(lambda: _attached(layers)),
    "round": _round,
}


@pytest.mark.parametrize("work", WORK)
def test_the_calls_of_a_program_grow_linearly_with_its_layers(work):
    few, many = WORK[work](FEW), WORK[work](MANY)
    assert few < many < LINEAR * few
