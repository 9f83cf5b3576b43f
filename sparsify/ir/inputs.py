"""What a program is called with: the structure, constants, shapes and batch sizes that it was traced for."""

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
"""An input that is no tensor: its value is part of the trace."""


def tensors_of(program: Program, phase: str, flat: Sequence[Any]) -> list[Tensor]:
    """The tensors among the flat arguments, in the order of the program's inputs, for a run of one phase.

    Raises:
        TraceError: If the arguments do not have the constants, shapes or batch size of the trace.
    """
    tensors = checked_tensors(program, flat)
    sizes = _sizes(program, tensors)
    allowed = program.batch_ranges[phase]
    for name, size in sizes.items():
        if size not in allowed:
            raise TraceError(
                f"program {program.name!r} holds for batches of {allowed} in {phase} mode, found {name} = {size}: forward takes "
                f"another branch there, or fails. Call it within that range, or trace it with an example of that size."
            )
    return tensors


def checked_tensors(program: Program, flat: Sequence[Any]) -> list[Tensor]:
    """The tensors among the flat arguments, in the order of the program's inputs, for a batch of any size.

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
    for value, expected in zip(tensors, program.input_specs, strict=True):
        if expected.shape and isinstance(expected.shape[0], str):
            size = int(value.shape[0])
            if sizes.setdefault(expected.shape[0], size) != size:
                raise TraceError(
                    f"inputs of program {program.name!r} share their first dimension {expected.shape[0]}, found "
                    f"{sizes[expected.shape[0]]} and {size} ({expected.name!r}). Give as many samples of each."
                )
    return sizes


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
        free = "only N may vary" if any(isinstance(size, str) for size in expected.shape) else "no dimension may vary"
        raise TraceError(
            f"input {expected.name!r} of program {program!r} was traced with shape {_shape(expected)}, found "
            f"{list(value.shape)}: the trace fixed the other sizes, {free}. Give inputs of that shape, or trace again with "
            f"an example of the new one."
        )
    if str(value.dtype).removeprefix("torch.") != expected.dtype and not torch.is_autocast_enabled(value.device.type):
        raise TraceError(
            f"input {expected.name!r} of program {program!r} was traced with dtype {expected.dtype}, found {value.dtype}. "
            f"Convert it with .to(torch.{expected.dtype})."
        )


def _shape(expected: TensorSpec) -> str:
    return f"[{', '.join(map(str, expected.shape))}]"


def brief(value: Any) -> str:
    """A value as messages show it."""
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)[:80]
