"""`sparsify.contracts.check` passes what keeps its promises, and names the promise that is broken."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import sparsify as sp
from sparsify.contracts import check, check_method
from sparsify.errors import ContractError, TaskError
from sparsify.parts.schedules import every
from sparsify.parts.scores import Score, random
from sparsify.parts.topology import DropAndGrow
from sparsify.tasks import Regression


@pytest.mark.parametrize("name", ["cigl(agent(set))", "distilled(rigl)"])
def test_methods_of_the_package_keep_their_promises(name: str) -> None:
    check(sp.methods.build(name, {"density": 0.2, "update_every": 5}))


def drops_nothing_twice(state: Any = None) -> DropAndGrow:
    """Random growth from the global generator, which no seed of the run reaches."""
    score = Score(torch.zeros_like, lambda view, memory: (torch.rand(view.weight.shape), memory))
    return DropAndGrow(drop_by=score, grow_by=random(), fraction=lambda step: 0.3, when=every(5))


def test_a_method_that_draws_without_its_generator_is_found() -> None:
    method = dataclasses.replace(sp.methods.set(density=0.2), topology=lambda total: drops_nothing_twice())
    with pytest.raises(ContractError, match="the same seed gives other bits in"):
        torch.manual_seed(0)
        check_method(method)


def test_a_method_that_ends_at_another_density_is_found() -> None:
    method = dataclasses.replace(sp.methods.set(density=0.2, update_every=5), density=0.2)
    wrong = dataclasses.replace(
        method, allocation=lambda layers, density: {n: layer.size // 2 for n, layer in layers.items()}
    )
    with pytest.raises(ContractError, match=r"weights are active at the end, and density 0\.2 asks for"):
        check_method(wrong)


class Banded(Regression):
    heads = ("interval", "band")


def test_a_task_needs_a_batch_and_other_things_are_refused() -> None:
    check(Regression(), torch.randn(8), torch.randn(8))
    with pytest.raises(
        ContractError, match="task 'regression' names the calibration heads band, which are not registered"
    ):
        check(Banded(), torch.randn(8), torch.randn(8))
    with pytest.raises(ContractError, match=r"check\(task, output, target\), found 0 arguments"):
        check(Regression())
    with pytest.raises(TaskError):
        check(Regression(), torch.randn(8), torch.randn(8, 3))
    with pytest.raises(
        ContractError, match="check takes a method, a pass, a task or a calibration head, found function"
    ):
        check(sp.methods.rigl)  # type: ignore[arg-type]
