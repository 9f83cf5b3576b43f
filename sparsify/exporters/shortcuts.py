"""What torch.onnx does anew for every export, and need not."""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch._decomp import decomposition_table
from torch.fx.node import map_arg

EXPORTER = "torch.onnx._internal.exporter"


@contextmanager
def shortcuts() -> Generator[list[str]]:
    """Let torch.onnx take its table of operators from the export before, and trace a program only once where that is enough.

    It reads the 500 functions of its table for every export, and makes a table of decompositions for each program that needs one, such as
    one that returns a value twice. It traces a program a second time to decompose operators that ONNX does not have, which takes more than
    half of an export, also where there are none: a traced program of this package has ATen operators only. Neither can be asked for, so
    functions of private modules are replaced within the block. Where a version of torch does not have them, nothing is changed.

    Yields:
        Which shortcuts were taken, so that an export that fails can be made without them.
    """
    taken: list[str] = []
    try:
        registry = importlib.import_module(f"{EXPORTER}._registration").ONNXRegistry
        passes: Any = importlib.import_module(f"{EXPORTER}._fx_passes")
        own, read, decompose = vars(registry)["from_torchlib"], registry.from_torchlib, passes.decompose_with_registry
        build = passes._decomp.create_onnx_friendly_decomposition_table
    except (ImportError, AttributeError, KeyError):
        yield taken
        return

    def known(*given: Any, **named: Any) -> Any:
        found = copy.copy(_operators(read, given, tuple(named.items())))
        found.functions = {
            target: [*functions] for target, functions in found.functions.items()
        }  # an export adds to it
        return found

    def decomposed(program: torch.export.ExportedProgram, operators: Any) -> torch.export.ExportedProgram:
        if not is_decomposed(program.graph, operators.is_registered):
            return decompose(program, operators)
        taken.append("traced once")
        return program

    def table(registered: set[Any]) -> dict[Any, Any]:
        return {**_decompositions(build, frozenset(registered), len(decomposition_table))}  # torch takes from it

    registry.from_torchlib, passes.decompose_with_registry = staticmethod(known), decomposed
    passes._decomp.create_onnx_friendly_decomposition_table = table
    try:
        yield taken
    finally:
        registry.from_torchlib, passes.decompose_with_registry = own, decompose
        passes._decomp.create_onnx_friendly_decomposition_table = build


@functools.cache
def _operators(read: Callable[..., Any], given: tuple[Any, ...], named: tuple[tuple[str, Any], ...]) -> Any:
    return read(*given, **dict(named))


@functools.lru_cache(maxsize=2)
def _decompositions(build: Callable[..., Any], registered: frozenset[Any], count: int) -> dict[Any, Any]:
    """The table for a program with operators that ONNX does not have; ``count`` makes it anew where decompositions were added."""
    del count
    return build(set(registered))


def is_decomposed(graph: fx.Graph, is_registered: Callable[[Any], bool]) -> bool:
    """Whether every operator of an exported graph can be converted as it is.

    Args:
        graph: of an exported program.
        is_registered: whether torch.onnx can convert an operator.
    """
    results: list[fx.Node] = []
    for node in graph.nodes:
        if node.op == "output":
            map_arg(node.args, results.append)
        elif node.op != "placeholder" and not (node.op == "call_function" and _is_plain(node, is_registered)):
            return False
    return len({*results}) == len(results) and all(node.op == "call_function" for node in results)


def _is_plain(node: fx.Node, is_registered: Callable[[Any], bool]) -> bool:
    """Whether an operator can be converted and writes to nothing; assertions are left out by the exporter."""
    name, schema = str(node.target), getattr(node.target, "_schema", None)
    if name.startswith("aten._assert_"):
        return True
    return is_registered(node.target) and not (schema is not None and schema.is_mutable)
