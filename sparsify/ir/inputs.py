"""Checks the arguments of a call against the structure, constants, shapes and sizes of the trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsify.errors import TraceError
from sparsify.ir.nodes import TensorSpec

if TYPE_CHECKING:
    from sparsify.ir.program import Program

Constant = None | bool | int | float | str
"""An input that is not a tensor; its value is part of the trace."""


def tensors_of(program: Program, phase: str, flat: Sequence[Any]) -> list[Tensor]:
    """Select the tensors among the flat arguments, in the order of the program's inputs, and check that the phase allows their sizes.

    Raises:
        TraceError: If the arguments do not have the constants, shapes or sizes of the trace.
    """
    tensors = checked_tensors(program, flat)
    sizes = _sizes(program, tensors)
    for name, allowed in program.ranges[phase].items():
        if name in sizes and sizes[name] not in allowed:
            what = "batches of " if name == "N" else ""
            raise TraceError(
                f"program {program.name!r} holds for {what}{allowed.text(name)} in {phase} mode, found {name} = {sizes[name]}: forward "
                f"takes another branch there, or fails. Call it within that range, or trace it with an example of that size."
            )
    return tensors


def varying_places(specs: Sequence[TensorSpec]) -> tuple[tuple[int, int, str], ...]:
    """Return input, dimension and name of every size that may vary and is a plain name, not an expression."""
    return tuple(
        (place, at, size)
        for place, spec in enumerate(specs)
        for at, size in enumerate(spec.shape)
        if isinstance(size, str) and size.isidentifier()
    )


def checked_tensors(program: Program, flat: Sequence[Any]) -> list[Tensor]:
    """Select the tensors among the flat arguments, in the order of the program's inputs; sizes of varying dimensions are not checked.

    Raises:
        TraceError: If the arguments do not have the constants or shapes of the trace.
    """
    for place, value in program.constants.items():
        if type(flat[place]) is not type(value) or flat[place] != value:
            raise TraceError(
                f"argument {place} of program {program.name!r} was {value!r} when it was traced and is part of it, found "
                f"{brief(flat[place])}. Call it with {value!r}, or trace again with the other value."
            )
    tensors = [value for place, value in enumerate(flat) if place not in program.constants]
    for value, expected in zip(tensors, program.input_specs, strict=True):
        _check(value, expected, program.name)
    return tensors


def _sizes(program: Program, tensors: Sequence[Tensor]) -> dict[str, int]:
    sizes = dict[str, int]()
    for place, at, name in program.places:
        size = int(tensors[place].shape[at])
        if sizes.setdefault(name, size) != size:
            where = f"their first dimension {name}" if at == 0 else f"dimension {name}"
            raise TraceError(
                f"inputs of program {program.name!r} share {where}, found {sizes[name]} and {size} "
                f"(dimension {at} of {program.input_specs[place].name!r}). {_advice(name)}"
            )
    return sizes


def _advice(name: str) -> str:
    return "Give as many samples of each." if name == "N" else f"Give one size of {name}, or trace with two names."


def _check(value: Any, expected: TensorSpec, program: str) -> None:
    if not isinstance(value, Tensor):
        raise TraceError(
            f"input {expected.name!r} of program {program!r} was traced as a tensor of shape {_shape(expected)}, found "
            f"{brief(value)}. Give a tensor."
        )
    fits = value.dim() == len(expected.shape) and all(
        [isinstance(want, str) or want == have for want, have in zip(expected.shape, value.shape, strict=False)]
    )
    if not fits:
        names = dict.fromkeys(size for size in expected.shape if isinstance(size, str))
        free = f"only {' and '.join(names)} may vary" if names else "no dimension may vary"
        raise TraceError(
            f"input {expected.name!r} of program {program!r} was traced with shape {_shape(expected)}, found "
            f"{list(value.shape)}: the trace fixed the other sizes, {free}. Give inputs of that shape, or trace again"
            f"{_declaration(value, expected)}."
        )
    if str(value.dtype).removeprefix("torch.") != expected.dtype and not torch.is_autocast_enabled(value.device.type):
        raise TraceError(
            f"input {expected.name!r} of program {program!r} was traced with dtype {expected.dtype}, found {value.dtype}. "
            f"Convert it with .to(torch.{expected.dtype})."
        )


def _declaration(value: Tensor, expected: TensorSpec) -> str:
    """Say how to declare the first dimension that differs from the trace."""
    if value.dim() != len(expected.shape):
        return " with an example of the new one"
    pairs = enumerate(zip(expected.shape, value.shape, strict=True))
    at = next(i for i, (want, have) in pairs if isinstance(want, int) and want != have)
    name = "N" if at == 0 else "T"
    return f" with dynamic={{{expected.name!r}: {{{at}: {name!r}}}}} if dimension {at} is to vary"


def _shape(expected: TensorSpec) -> str:
    return f"[{', '.join(map(str, expected.shape))}]"


def brief(value: Any) -> str:
    """Show a value in a message."""
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)[:80]
