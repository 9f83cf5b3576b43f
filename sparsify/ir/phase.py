"""A phase as an executable module: its compiled graph looks state up in tables of modules, never by attribute access."""

from __future__ import annotations

import contextlib
import keyword
from collections.abc import Callable, Generator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from sparsify.ir.state import TABLES, find, submodule

FULL_PRECISION = "full_precision"
"""Marks a node that came from ``torch.autocast(enabled=False)``: it computes in the precision of its inputs under any autocast."""


class Phase(fx.GraphModule):
    """One phase of a program: flat inputs, flat outputs, and state that it shares with the program."""

    def __init__(self, state: nn.Module, graph: fx.Graph, class_name: str) -> None:
        super().__init__(nn.Module(), fx.Graph(), class_name)
        for table in TABLES:
            self.__dict__[table] = state.__dict__[table]
        self.graph = graph

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(
            self, name, value
        )  # a phase owns no state, and a user's module may have the name of any attribute

    def get_submodule(self, target: str) -> nn.Module:
        """Return the submodule called ``target``; the phase itself for an empty name."""
        return submodule(self, target)

    def lint(self) -> None:
        """Check that the graph is well formed. That its state exists is a rule of the verifier; torch looks it up as attributes."""
        owner, self.graph.owning_module = self.graph.owning_module, None
        try:
            self.graph.lint()
        finally:
            self.graph.owning_module = owner

    def recompile(self) -> Any:
        """Compile the graph after it was edited."""
        with _executable(self, self._graph):
            return super().recompile()


class PhaseCall(nn.Module):
    """A phase for torch's exporters, which read state as attributes; it has no attributes of its own that could clash with state."""

    def __init__(self, phase: Phase) -> None:
        super().__init__()
        self.__dict__.update({table: _mirror(phase).__dict__[table] for table in TABLES}, _phase=phase)

    def forward(self, *inputs: Tensor) -> Any:
        return self.__dict__["_phase"](*inputs)


def _mirror(module: nn.Module) -> nn.Module:
    """Mirror a tree of modules over the same tables of tensors; submodules whose names are Python keywords are renamed."""
    made = nn.Module()
    made.__dict__.update(_parameters=module._parameters, _buffers=module._buffers)
    for name, inner in module._modules.items():
        plain = f"{name}_" if keyword.iskeyword(name) and f"{name}_" not in module._modules else name
        made._modules[plain] = None if inner is None else _mirror(inner)
    return made


class _Read:
    """Reads one tensor from the table that holds it."""

    def __init__(self, table: Mapping[str, Any], leaf: str) -> None:
        self.table, self.leaf = table, leaf
        self.__name__ = "read"
        self.__module__ = __name__

    def __call__(self) -> Any:
        return self.table[self.leaf]


class _Call(_Read):
    """Calls one submodule from the table that holds it: a tap or a record, which has no hooks of torch."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.table[self.leaf].forward(*args, **kwargs)


class _InFullPrecision:
    """Calls an operator outside autocast."""

    def __init__(self, operator: Callable[..., Any]) -> None:
        self.operator = operator
        self.__name__ = "in_full_precision"
        self.__module__ = __name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        kind = next((x.device.type for x in args if isinstance(x, Tensor)), None)
        if kind is None or not torch.is_autocast_enabled(kind):
            return self.operator(*args, **kwargs)
        with torch.autocast(kind, enabled=False):
            return self.operator(*args, **kwargs)


@contextlib.contextmanager
def _executable(state: nn.Module, graph: fx.Graph) -> Generator[None]:
    """Within the block, let the graph read state through tables and call full-precision operators outside autocast.

    The nodes are changed and restored, because copying the graph takes longer than the rest of compiling it.
    """
    given: list[tuple[fx.Node, str, Any]] = []
    try:
        for node in graph.nodes:
            target = node.target
            if node.op in ("get_attr", "call_module"):
                made: Any = (_Read if node.op == "get_attr" else _Call)(*_table(state, str(target)))
            elif node.op == "call_function" and node.meta.get(FULL_PRECISION):
                made = _InFullPrecision(cast("Callable[..., Any]", target))
            else:
                continue
            given.append((node, node.op, target))
            _assign(node, "call_function", made)
        yield
    finally:
        for node, op, target in given:
            _assign(node, op, target)


def _assign(node: fx.Node, op: str, target: Any) -> None:
    node.op = op
    node.target = target


def _table(state: nn.Module, name: str) -> tuple[Mapping[str, Any], str]:
    owner, _, leaf = name.rpartition(".")
    module = find(state, owner) if owner else state
    if isinstance(module, nn.Module):
        for table in TABLES:
            if leaf in getattr(module, table):
                return getattr(module, table), leaf
    return {}, leaf  # the verifier names state that does not exist


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """Return a copy of a flat graph, metadata included."""
    fresh = fx.Graph()
    value_map: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copied = fresh.node_copy(node, lambda n: value_map[n])
        copied.meta = dict(node.meta)
        value_map[node] = copied
    return fresh
