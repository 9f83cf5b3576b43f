"""An attach that fails leaves the program and the optimizers as they were."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sparsify.ir import Program
from sparsify.ir.nodes import HOOKS
from sparsify.ir.phase import copy_graph
from sparsify.ir.state import place, skeleton
from sparsify.training.optimizers import Optimizers


@contextmanager
def undone_on_error(program: Program, optimizers: Optimizers) -> Generator[None]:
    """Put everything back if the block raises: graphs, names, values of weights and buffers, groups and state of the optimizers."""
    state = skeleton(program)
    for name, module in program.named_modules():
        if isinstance(module, HOOKS):
            place(state, name, module)
    tensors: list[Tensor] = [*program.parameters(), *program.buffers()]
    values = [tensor.detach().clone() for tensor in tensors]
    graphs = {phase: copy_graph(module.graph) for phase, module in program.phases.items()}
    kept = {
        key: program.__dict__[key]
        for key in (
            "stage",
            "input_specs",
            "in_spec",
            "training",
            "dynamic_batch",
            "sizes",
            "ranges",
            "constants",
            "signature",
        )
    }
    out_specs = dict(program.out_specs)
    groups = [(group, list(group["params"])) for group in optimizers.param_groups]
    entries = [(entry, _copied(entry)) for optimizer in optimizers.each for entry in optimizer.state.values()]
    try:
        yield
    except BaseException:
        before = Program(
            state,
            graphs,
            name=program.name,
            stage=kept["stage"],
            input_specs=kept["input_specs"],
            dynamic_batch=kept["dynamic_batch"],
            sizes=kept["sizes"],
            ranges=kept["ranges"],
            constants=kept["constants"],
            signature=kept["signature"],
            in_spec=kept["in_spec"],
            out_specs=out_specs,
        )
        program.adopt(before)
        program.__dict__["training"] = kept["training"]
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        for group, params in groups:
            group["params"][:] = params
        for entry, copy in entries:
            entry.clear()
            entry.update(copy)
        raise


def _copied(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in entry.items()}
