"""What a file takes and returns: the inputs of a program, sliced to a batch, and those of its outputs that are tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sparsify.arguments import found as in_words
from sparsify.errors import ExportError, TraceError
from sparsify.ir import Program, TensorSpec
from sparsify.ir.binding import Inputs
from sparsify.ir.dimensions import BATCH, mentions, resized
from sparsify.ir.traits import named_outputs
from sparsify.tasks import Classification, Task


@dataclass(frozen=True)
class Output:
    """An output of the eval phase that is a tensor.

    Attributes:
        place: among the flat outputs.
        name: in the program and in the file.
        samples: the dimension that counts samples, or None.
        task: what its numbers mean, where a task reads it; None: only errors can be compared.
        epsilon: of its type; 0 for whole numbers.
    """

    place: int
    name: str
    samples: int | None
    task: Task | None
    epsilon: float


def tensor_outputs(program: Program, task: Task | None = None) -> tuple[Output, ...]:
    """The flat outputs of the eval phase that are tensors; None and numbers cannot be outputs of a file.

    Args:
        program: in any mode.
        task: what its outputs mean. None: its own, else classification where it returns logits [N, K].
    """
    task = task or program.task or Classification()
    sizes = {spec.shape[0] for spec in program.input_specs if spec.shape}
    batch = "N" if program.dynamic_batch else next(iter(sizes)) if len(sizes) == 1 else None
    found: list[Output] = []
    for place, (name, leaf) in enumerate(named_outputs(program.output_node("eval")).items()):
        if isinstance(leaf, fx.Node) and isinstance(spec := leaf.meta.get("spec"), TensorSpec):
            kind = getattr(torch, spec.dtype)
            samples = _sample_dimension(program, spec)
            if not program.dynamic_batch and batch in spec.shape[:1]:
                samples = 0
            read = kind.is_floating_point and samples == 0 and name == task.output and task.takes(spec.shape)
            floats = kind.is_floating_point or kind.is_complex
            found.append(Output(place, name, samples, task if read else None, torch.finfo(kind).eps if floats else 0.0))
    return tuple(found)


def _sample_dimension(program: Program, spec: TensorSpec) -> int | None:
    """The dimension that counts samples: the first that depends on the batch, or on sizes that only a run tells."""
    others = [name for name in program.sizes if name != BATCH]
    found = [
        i
        for i, size in enumerate(spec.shape)
        if mentions(size, BATCH) or (isinstance(size, str) and not any(mentions(size, name) for name in others))
    ]
    return found[0] if found else None


def holds_samples(program: Program, spec: TensorSpec) -> bool:
    """Whether an input holds a row per sample."""
    return bool(spec.shape) and (spec.shape[0] == "N" or not program.dynamic_batch)


def flat_inputs(program: Program, inputs: Inputs) -> list[Tensor]:
    """One tensor per input of the program, from that or from what the program is called with.

    Raises:
        ExportError: If the inputs are something else.
    """
    if isinstance(inputs, (tuple, list)) and all(isinstance(x, Tensor) for x in inputs):
        return list(inputs)
    try:
        return program.input_tensors(inputs)
    except TraceError as error:
        raise ExportError(
            f"inputs should be tensors [N, ...], one per program input, or what the program is called with, found "
            f"{in_words(inputs)}: {error}"
        ) from error


def sizes_of(program: Program, inputs: Sequence[Tensor]) -> dict[str, int]:
    """The sizes of inputs by dimension."""
    return {name: int(inputs[place].shape[at]) for place, at, name in program.places}


def sized(program: Program, inputs: Sequence[Tensor], sizes: Mapping[str, int]) -> list[Tensor]:
    """Inputs in other sizes: their first values along each dimension, repeated where there are fewer."""
    found = list(inputs)
    for place, at, name in program.places:
        if name in sizes:
            last = found[place].ndim == 4 and _is_last(program.input_specs[place], found[place])
            found[place] = resized(found[place], {(0, 3, 1, 2)[at] if last else at: sizes[name]})
    return found


def sample_count(program: Program, inputs: Sequence[Tensor] | None) -> int:
    """Samples in ``inputs``, which may be several batches of a program of one fixed size; None: those of one batch of such a program.

    Raises:
        ExportError: If inputs hold different numbers of samples.
    """
    if program.dynamic_batch and inputs is not None:
        return batch_size(program, inputs)
    sliced = [] if inputs is None else _longer(program, inputs)
    counts = {value.shape[0] for value, longer in zip(inputs or (), sliced, strict=True) if longer}
    if len(counts) > 1:
        found = ", ".join(
            f"{spec.name} {list(x.shape)}" for spec, x in zip(program.input_specs, inputs or (), strict=True)
        )
        raise ExportError(f"inputs should hold the same number of samples each, found {found}.")
    own = [spec.shape[0] for spec, longer in zip(program.input_specs, sliced, strict=False) if longer]
    own = own or [spec.shape[0] for spec in program.input_specs if spec.shape]
    return counts.pop() if counts else int(own[0]) if own else 1


def _longer(program: Program, inputs: Sequence[Tensor]) -> list[bool]:
    """For a program of one fixed batch, the inputs that hold more or fewer samples than it takes: the others have no batch dimension."""
    return [
        bool(spec.shape) and value.ndim == len(spec.shape) and value.shape[0] != spec.shape[0]
        for spec, value in zip(program.input_specs, inputs, strict=True)
    ]


def batches_of(program: Program, inputs: Sequence[Tensor], sizes: Sequence[int]) -> Iterator[list[Tensor]]:
    """Consecutive batches of these sizes, each input sliced by its role; an input without a batch dimension is whole in each of them."""
    if program.dynamic_batch:
        along = [[i for i, size in enumerate(spec.shape) if size == "N"] for spec in program.input_specs]
    else:
        along = [[0] if longer else [] for longer in _longer(program, inputs)]
    start = 0
    for size in sizes:
        batch: list[Tensor] = []
        for value, dimensions in zip(inputs, along, strict=True):
            for dimension in dimensions:
                value = value.narrow(dimension, start, size)
            batch.append(value)
        yield batch
        start += size


def _is_last(spec: TensorSpec, value: Tensor) -> bool:
    """Whether a value has its channels last, other than the program: bytes of pictures as libraries store them."""
    return value.shape[1] != spec.shape[1] and value.shape[3] == spec.shape[1] and isinstance(spec.shape[1], int)


def batch_size(program: Program, inputs: Sequence[Tensor]) -> int:
    """Samples in ``inputs``; 1 where no input has a batch dimension.

    Raises:
        ExportError: If inputs are missing or too many, or hold different numbers of samples.
    """
    if len(inputs) != len(program.input_specs):
        names = ", ".join(spec.name for spec in program.input_specs)
        raise ExportError(f"inputs should hold {len(program.input_specs)} tensor(s) ({names}), found {len(inputs)}.")
    counts = {
        spec.name: value.shape[spec.shape.index("N")]
        for spec, value in zip(program.input_specs, inputs, strict=True)
        if "N" in spec.shape and value.ndim == len(spec.shape)
    }
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ExportError(f"inputs should hold the same number of samples each, found {found}.")
    if not counts:
        return next((int(value.shape[0]) for value in inputs if value.ndim), 1)
    count = next(iter(counts.values()))
    if not count:
        raise ExportError("inputs hold no sample. Give real held-out inputs, as many as can be spared.")
    return count


def refuse_alike(program: Program, inputs: Sequence[Tensor]) -> None:
    """Refuse inputs that are one sample over and over, or one number: they tell hardly anything about a file.

    Raises:
        ExportError: If they are.
    """
    count = batch_size(program, inputs)
    values = [
        x for spec, x in zip(program.input_specs, inputs, strict=True) if x.numel() > 1 and holds_samples(program, spec)
    ]
    alike = count > 1 and all(bool((x == x[:1]).all()) for x in values)
    flat = all(x.is_floating_point() and bool((x == x.flatten()[0]).all()) for x in values)
    if values and (alike or flat):
        found = "one and the same number everywhere" if flat else f"{count} times the same sample"
        raise ExportError(
            f"the inputs cannot tell a right file from a wrong one: they are {found}. Give real held-out inputs that differ; 16 or more "
            f"tell most. Nothing was written."
        )


def made_up(program: Program, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Inputs of the same shapes that move a program more: noise 1 to 1000 times as large, or their whole numbers drawn anew."""
    generator = torch.Generator().manual_seed(0)
    found: list[Tensor] = []
    for spec, value in zip(program.input_specs, inputs, strict=True):
        if not holds_samples(program, spec) or not value.numel():
            found.append(value)
        elif value.is_floating_point():
            size = value.double().abs().mean().clamp_min(1e-3)
            noise = torch.randn(value.shape, dtype=torch.float64, generator=generator)
            scales = torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=torch.float64).repeat(len(value) // 4 + 1)[
                : len(value)
            ]
            found.append((noise * size * scales.view(-1, *[1] * (value.ndim - 1))).to(value.dtype))
        else:
            drawn = torch.randint(value.numel(), value.shape, generator=generator)
            found.append(value.flatten()[drawn])
    return found
