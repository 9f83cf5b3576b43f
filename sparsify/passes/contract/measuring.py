"""Records what a program computes and consists of, so that both can be compared before and after a pass."""

from __future__ import annotations

import zlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.ir import Program
from sparsify.ir.sites import layouts, parameter_names
from sparsify.passes.base import Effect, Kept, Preserves

OUTPUT_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
"""Largest difference that counts as rounding, relative to the largest entry of a tensor."""


@dataclass(frozen=True)
class Run:
    """The results of one call of a phase.

    Attributes:
        names: names of the outputs that were differentiated.
        outputs: outputs by name, and under ``state of ...`` the buffers that the call changed.
        buffers: all buffers after the call, under ``state of ...``.
        inputs: gradients with respect to floating inputs, by place.
        parameters: gradients with respect to parameters, by each of their names; those of compact weights are dense.
    """

    names: tuple[str, ...]
    outputs: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]
    parameters: Mapping[str, Tensor]


@dataclass(frozen=True)
class State:
    """The parts of a program: the lines of each graph, and its tensors and modules by name."""

    graphs: Mapping[str, tuple[str, ...]]
    tensors: Mapping[str, Tensor]
    modules: frozenset[str]


def run(program: Program, phase: str, args: Sequence[Any], outputs: Sequence[str] | None = None) -> Run:
    """Call a phase and differentiate a weighted sum of its floating outputs; the program and torch's generator do not change.

    Args:
        program: the program to call.
        phase: ``train`` or ``eval``.
        args: flat inputs.
        outputs: names of the outputs to differentiate; all by default.
    """
    leaves = [x.detach().clone().requires_grad_() if _moves(x) else x for x in args]
    old = {name: value.detach().clone() for name, value in program.named_buffers()}
    with undisturbed(program), torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        given = [x.clone() if _moves(x) else x for x in leaves]  # a model may write into its inputs
        named = dict(zip(program.output_names(phase), program.phases[phase](*given), strict=True))
        named = {name: value for name, value in named.items() if outputs is None or name in outputs}
        terms = [
            (value * _weights(name, value)).sum()
            for name, value in named.items()
            if _moves(value) and value.requires_grad
        ]
        parameters = {n: p for n, p in program.named_parameters(remove_duplicate=False) if p.requires_grad}
        places = {str(place): x for place, x in enumerate(leaves) if _moves(x)}
        wanted = [*parameters.values(), *places.values()]
        total = torch.stack([term.double() for term in terms]).sum() if terms else None
        found = (
            torch.autograd.grad(total, wanted, allow_unused=True)
            if total is not None and wanted
            else [None] * len(wanted)
        )
        gradients = [torch.zeros_like(x) if g is None else g for g, x in zip(found, wanted, strict=True)]
        stored, first = layouts(program), parameter_names(program)
        gradients[: len(parameters)] = [
            stored[first[name]].scatter(g) if first[name] in stored else g
            for name, g in zip(parameters, gradients, strict=False)
        ]
        after = {name: value.detach().clone() for name, value in program.named_buffers()}
    values = {name: value.detach() for name, value in named.items()}
    changed = {f"state of {name}": value for name, value in after.items() if not torch.equal(value, old[name])}
    split = len(parameters)
    return Run(
        tuple(values),
        values | changed,
        {f"state of {name}": value for name, value in after.items()},
        dict(zip(places, gradients[split:], strict=True)),
        dict(zip(parameters, gradients[:split], strict=True)),
    )


def kept(before: Run, after: Run) -> Kept:
    """Compare two runs of a phase. A parameter that the pass removed counts as having gradient 0."""
    outputs = _level(before.outputs, {**after.buffers, **after.outputs}, OUTPUT_TOLERANCE)
    if outputs > Preserves.NOTHING and _level(before.inputs, after.inputs, GRADIENT_TOLERANCE) is Preserves.NOTHING:
        outputs = Preserves.NOTHING
    left = {n: after.parameters.get(n, torch.zeros_like(v)) for n, v in before.parameters.items()}
    return Kept(outputs, _level(before.parameters, left, GRADIENT_TOLERANCE))


def state(program: Program) -> State:
    """Record the present state of a program, with copies of its tensors."""
    tensors = [*program.named_parameters(remove_duplicate=False), *program.named_buffers(remove_duplicate=False)]
    return State(
        {phase: _lines(program, phase) for phase in program.phases},
        {name: _copied(value) for name, value in tensors},
        frozenset(name for name, _ in program.named_modules(remove_duplicate=False)),
    )


def effects(before: State, after: State) -> Effect:
    """Compare two states; returns what the pass changed."""
    found = Effect.NONE
    for phase, effect in (("train", Effect.TRAIN_GRAPH), ("eval", Effect.EVAL_GRAPH)):
        if before.graphs.get(phase) != after.graphs.get(phase):
            found |= effect
    if before.tensors.keys() != after.tensors.keys() or before.modules != after.modules:
        found |= Effect.NAMES
    shared = before.tensors.keys() & after.tensors.keys()
    if any(not _same(before.tensors[name], after.tensors[name]) for name in shared):
        found |= Effect.WEIGHTS
    return found


def trained(state: State) -> dict[str, bool]:
    """Return whether each parameter trains, by name."""
    return {name: value.requires_grad for name, value in state.tensors.items() if isinstance(value, nn.Parameter)}


def _level(want: Mapping[str, Tensor], have: Mapping[str, Tensor], tolerance: float) -> Preserves:
    """Return the lowest level at which any of the values is preserved."""
    level, floor = Preserves.EXACTLY, 1e-3 * max((_largest(value) for value in want.values()), default=0.0)
    for name, value in want.items():
        other = have.get(name)
        if other is None or other.shape != value.shape or other.dtype != value.dtype:
            return Preserves.NOTHING
        if not _same(value, other):
            if not value.is_floating_point():
                return Preserves.NOTHING
            allowed = tolerance * max(_largest(value), floor)
            if not bool(((value - other).abs() <= allowed).all()):
                return Preserves.NOTHING
            level = Preserves.NUMERICALLY
    return level


def _largest(value: Tensor) -> float:
    return float(value.detach().abs().max()) if value.is_floating_point() and value.numel() else 0.0


def _same(value: Tensor, other: Tensor) -> bool:
    return value.shape == other.shape and value.dtype == other.dtype and torch.equal(value, other)


def _moves(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _weights(name: str, value: Tensor) -> Tensor:
    """Return the weight of each entry of an output in the differentiated sum, drawn once per name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(value.shape, generator=generator, dtype=value.dtype)


def _copied(value: Tensor) -> Tensor:
    made = value.detach().clone()
    return nn.Parameter(made, value.requires_grad) if isinstance(value, nn.Parameter) else made


def _lines(program: Program, phase: str) -> tuple[str, ...]:
    lines = [
        f"{n.name} {n.op} {n.target} {n.args} {n.kwargs} {n.meta.get('spec')}"
        for n in program.phases[phase].graph.nodes
    ]
    return (*lines, f"{program.output_names(phase)} {program.out_specs[phase]}")


@contextmanager
def undisturbed(program: Program) -> Generator[None]:
    """Restore the buffers that the block changes."""
    values = [(buffer, buffer.detach().clone()) for buffer in program.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in values:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
