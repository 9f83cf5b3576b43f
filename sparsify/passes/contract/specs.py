"""Checks whether the shapes and dtypes recorded on a program's nodes are those of the values that flow through them."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sparsify.ir import Program, TensorSpec
from sparsify.passes.contract.measuring import undisturbed


def false_specs(program: Program, phase: str, args: Sequence[Any]) -> list[str]:
    """List the nodes of a phase whose spec is missing or differs from their value, as lines of text.

    Args:
        program: the program to check; it does not change.
        phase: ``train`` or ``eval``.
        args: flat inputs. Give another batch size than the trace had, to find varying sizes that were recorded as numbers.
    """
    sizes = _sizes(program, args)
    found = list[str]()
    given = [x.clone() if isinstance(x, Tensor) else x for x in args]  # a model may write into its inputs
    with torch.no_grad(), undisturbed(program), torch.random.fork_rng(devices=[]):
        for node, value in _values(program, phase, given):
            spec = node.meta.get("spec")
            if not isinstance(spec, TensorSpec):
                found.append(f"%{node.name} of {phase} has no spec; its value is {_told(value)}")
            elif not _agrees(spec, value, sizes):
                found.append(f"%{node.name} of {phase} claims {spec}; its value is {_told(value)}")
    return found


def _values(program: Program, phase: str, args: Sequence[Any]) -> Iterator[tuple[fx.Node, Tensor]]:
    """Yield each node whose value is a tensor, with the value right after the node ran."""
    graph = program.phases[phase].graph
    values, given = dict[fx.Node, Any](), iter(args)
    for node in graph.nodes:
        if node.op == "output":
            return
        arguments = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
        if node.op == "placeholder":
            value = next(given)
        elif node.op == "get_attr":
            value = program.tensor(str(node.target))
        else:
            call: Callable[..., Any] = (
                program.get_submodule(str(node.target)) if node.op == "call_module" else node.target
            )  # type: ignore[assignment]
            value = call(*arguments[0], **arguments[1])
        values[node] = value
        if isinstance(value, Tensor):
            yield node, value


def _sizes(program: Program, args: Sequence[Any]) -> dict[str, int]:
    """Return the sizes of varying dimensions by name."""
    return {
        size: int(value.shape[place])
        for spec, value in zip(program.input_specs, args, strict=True)
        for place, size in enumerate(spec.shape)
        if isinstance(size, str) and size.isidentifier()
    }


def _agrees(spec: TensorSpec, value: Tensor, sizes: Mapping[str, int]) -> bool:
    if len(spec.shape) != value.ndim or spec.dtype != str(value.dtype).removeprefix("torch."):
        return False
    return all(_size(claim, sizes) == size for claim, size in zip(spec.shape, value.shape, strict=True))


def _size(claim: int | str, sizes: Mapping[str, int]) -> float | None:
    """Evaluate a dimension such as ``"2*N"``; None if its text is not understood."""
    if isinstance(claim, int):
        return claim
    try:
        return _number(ast.parse(claim, mode="eval").body, sizes)
    except (SyntaxError, KeyError, ZeroDivisionError):
        return None


def _number(term: ast.expr, sizes: Mapping[str, int]) -> float:
    if isinstance(term, ast.Constant) and isinstance(term.value, (int, float)):
        return term.value
    if isinstance(term, ast.Name):
        return sizes[term.id]
    if isinstance(term, ast.BinOp) and type(term.op) in _OPERATORS:
        return _OPERATORS[type(term.op)](_number(term.left, sizes), _number(term.right, sizes))
    if isinstance(term, ast.UnaryOp) and isinstance(term.op, ast.USub):
        return -_number(term.operand, sizes)
    raise KeyError(ast.dump(term))


_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Div: lambda a, b: a / b,
    ast.Mod: lambda a, b: a % b,
}


def _told(value: Tensor) -> str:
    return str(TensorSpec("", tuple(value.shape), str(value.dtype).removeprefix("torch.")))
