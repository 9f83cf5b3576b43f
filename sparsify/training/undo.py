"""Restores the program, the optimizers and the global random state if `attach` fails."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sparsify.ir import Program
from sparsify.ir.compaction import store
from sparsify.ir.nodes import HOOKS
from sparsify.ir.phase import copy_graph
from sparsify.training.optimizers import Optimizer, Optimizers

STATE = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
"""Tables of a module. Phases share them, so they are restored in place."""


@contextmanager
def undone_on_error(program: Program, optimizers: Optimizers) -> Generator[None]:
    """Restore everything if the block raises.

    This covers graphs, names and attributes of the program; values, gradients, hooks and ``requires_grad`` of its tensors; groups, state
    and hooks of the optimizers; and the state of the global random generator on the CPU. All objects keep their identity.
    """
    undo = [_program(program), *map(_tensor, [*program.parameters(), *program.buffers()])]
    undo += [step for optimizer in optimizers.each for step in _optimizer(optimizer)]
    random = torch.random.get_rng_state()
    try:
        yield
    except BaseException:
        for step in undo:
            step()
        torch.random.set_rng_state(random)
        raise


def _program(program: Program) -> Callable[[], None]:
    tables = [(module.__dict__[name], module.__dict__[name].copy()) for module in program.modules() for name in STATE]
    attributes = {name: _nested(value) for name, value in program.__dict__.items() if name not in STATE}
    graphs = {phase: copy_graph(module.graph) for phase, module in program.phases.items()}
    recorded = [(module, dict(module.__dict__)) for module in program.modules() if isinstance(module, HOOKS)]

    def undo() -> None:
        for table, before in tables:
            table.clear()
            table.update(before)
        own = {name: program.__dict__[name] for name in STATE}
        program.__dict__.clear()
        program.__dict__.update(own | attributes)
        for phase, graph in graphs.items():
            program.phases[phase].graph = graph
        for module, before in recorded:
            module.__dict__.update(before)

    return undo


def _tensor(tensor: Tensor) -> Callable[[], None]:
    memory, value, trains = tensor.data, tensor.detach().clone(), tensor.requires_grad
    gradient = tensor.grad
    slope = None if gradient is None else gradient.detach().clone()
    hooks = {*(tensor._backward_hooks or {})}

    def undo() -> None:
        added = tensor._backward_hooks or {}
        for key in added.keys() - hooks:
            del added[key]
        store(tensor, memory)
        tensor.requires_grad_(trains)
        tensor.grad = gradient
        with torch.no_grad():
            tensor.copy_(value)
            if gradient is not None and slope is not None:
                gradient.copy_(slope)

    return undo


def _optimizer(optimizer: Optimizer) -> Generator[Callable[[], None]]:
    yield _mapping(optimizer.state)
    for entry in optimizer.state.values():
        if isinstance(entry, dict):
            yield _mapping(entry)
            yield from (_tensor(value) for value in entry.values() if isinstance(value, Tensor))
    yield _list(optimizer.param_groups)
    for group in optimizer.param_groups:
        yield _mapping(group)
        if isinstance(group["params"], list):
            yield _list(group["params"])
    hooks = getattr(optimizer, "_optimizer_step_pre_hooks", None)
    if hooks is not None:
        yield _mapping(hooks)


def _mapping(found: Any) -> Callable[[], None]:
    before = dict(found)

    def undo() -> None:
        found.clear()
        found.update(before)

    return undo


def _list(found: list[Any]) -> Callable[[], None]:
    before = list(found)

    def undo() -> None:
        found[:] = before

    return undo


def _nested(value: Any) -> Any:
    """Copy nested dicts; the values in them stay the same objects."""
    return {key: _nested(inner) for key, inner in value.items()} if type(value) is dict else value
